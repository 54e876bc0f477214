"""Distribution matching: exact opinions, two players, what each may move, and the real networks."""

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm.attention import CachedCausal
from jvdm.errors import ConfigError, Preempted, WeightsError
from jvdm.keys import named
from jvdm.samplers import (
    AutoregressiveMatrix,
    CachedMatrix,
    ClassifierFree,
    ExplicitLevels,
    LagMatrix,
    SynchronousMatrix,
    Unguided,
)
from jvdm.samplers.denoiser import Call, make_denoiser
from jvdm.samplers.solvers import Consistency
from jvdm.train import train
from jvdm.training.checkpoint import read_checkpoint
from jvdm.training.critic import Critic
from jvdm.training.distribution_matching import DistributionMatching, Players
from jvdm.training.objective import HasComponents, HasFrozen, HasRules, HasUpdate, TrainCall
from jvdm.values import from_data, to_data
from tests.generate.nano import SYSTEM, drawn, write_weights
from tests.training import players
from tests.training.players import MEAN, STD, Normal, of_law

SHAPE = (2, 3, 2, 4, 4)


def batch_of(count):
    return {"latents": jnp.zeros((count, 2, 1, 1, 1)), "tokens": jnp.zeros((count, 1), jnp.int32)}


def call_of(params, frozen=None, seed=5):
    return TrainCall(jnp.int32(0), jax.random.key(seed), params, frozen or {})


def slopes(params, count=4096):
    """Returns loss and gradient of the student's parameters."""
    of = jax.jit(jax.value_and_grad(lambda p: Normal().loss(p, batch_of(count), call_of(p))[0]))
    loss, slope = of(params)
    return float(loss), slope["model"]


def test_at_the_truth_there_is_no_difference_and_no_gradient():
    loss, slope = slopes(of_law(MEAN, STD))
    assert loss < 1e-10
    assert all(float(jnp.abs(leaf).max()) < 1e-6 for leaf in slope.values())


def test_elsewhere_the_gradient_points_to_the_truth():
    for off in (-0.7, 0.7):
        loss, slope = slopes(of_law(MEAN + off, STD))
        assert loss > 1e-3
        assert (np.sign(slope["mean"]) == np.sign(off)).all()
    for share in (0.5, 2.0):
        _, slope = slopes(of_law(MEAN, share * STD))
        assert (np.sign(slope["std"]) == np.sign(share - 1)).all()


def test_the_difference_of_two_shifted_laws_is_the_one_of_the_formula():
    """`off sigma^2 / (alpha^2 S^2 + sigma^2)` at every level, over how far the teacher is."""
    off, made = 0.7, MEAN + 0.7 + STD * jax.random.normal(jax.random.key(0), (64, 2, 1, 1, 1))
    found = Normal().differ(of_law(MEAN + off, STD), {}, None, made, jax.random.key(1))
    _, rows = Normal().taught
    t = rows(named(jax.random.key(1), "levels"), 64, 2).t[..., None, None, None]
    exact = off * t**2 / ((1 - t) ** 2 * STD**2 + t**2)
    noise = jax.random.normal(named(jax.random.key(1), "noise"), made.shape)
    real = players.seen(MEAN, STD, (1 - t) * made + t * noise, t[..., 0, 0, 0])
    size = jnp.abs(made - real).mean((1, 2, 3, 4), keepdims=True)
    np.testing.assert_allclose(found, exact / size, rtol=2e-4, atol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train(players.experiment(), workdir)
    return workdir


def arrays(workdir, step=None):
    return read_checkpoint(workdir / "checkpoints", step)[0]


def test_a_student_and_its_second_network_find_the_law(whole):
    found = arrays(whole)
    law = [found[f"ema/model/{name}"] for name in ("mean", "std")]
    np.testing.assert_allclose(law[0], MEAN, atol=0.1)  # it began 3 and 1 away
    np.testing.assert_allclose(np.abs(law[1]), STD, atol=0.1)
    counts = {name: int(value) for name, value in found.items() if name.endswith("count")}
    assert {int(n) for name, n in counts.items() if "student" in name} == {600}
    assert {int(n) for name, n in counts.items() if "score" in name} == {3000}


def test_two_players_continue_with_the_same_bits(whole, tmp_path):
    with pytest.raises(Preempted, match="at step 277 of 600"):
        train(players.experiment(stop_at=277), tmp_path)
    assert train(players.experiment(stop_at=277), tmp_path)["resumed_from"] == 277
    one, other = arrays(whole), arrays(tmp_path)
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


class Seen(NamedTuple):
    """What a network hands on of the clips that it saw."""

    features: tuple[Any]


@dataclasses.dataclass(frozen=True)
class Misled(Normal):
    """A teacher that errs by `OFF`, and a critic of two powers of clips at every level."""

    def init(self, key):
        """Returns the players of `Normal`, and a critic where there is one."""
        found = super().init(key)
        if not self.adversarial:
            return found
        return {**found, "critic": Critic().init(key, jnp.zeros((1, 1, 6)))["params"]}

    def real(self, frozen, tokens, x, t):
        """Returns what the teacher sees, who knows another law than that of the data."""
        return players.seen(MEAN + OFF, STD, x, t)

    def second(self, score, frozen, tokens, watched=False):
        """Returns the network of `Normal`, which hands on what it saw."""
        network = super().second(score, frozen, tokens)

        def hands_on(x, call, carry):
            t = call.t[:, :1]
            one, other = (x - (1 - t)[..., None, None, None] * (MEAN + OFF / 2)).reshape(-1, 2).T
            seen = jnp.stack([one, other, one**2, other**2, t[:, 0], jnp.ones_like(one)], -1)
            return network(x, call, carry)[0], Seen((seen[:, None],))

        return hands_on if watched else network


OFF = 1.0


def test_a_critic_draws_a_student_from_a_teacher_that_errs_to_the_data(tmp_path):
    found = {}
    for weight in (0.0, 3.0):
        experiment = dataclasses.replace(players.experiment(), objective=Misled(adversarial=weight))
        train(experiment, tmp_path / f"{weight}")
        found[weight] = arrays(tmp_path / f"{weight}")["ema/model/mean"] - MEAN
    np.testing.assert_allclose(found[0.0], OFF, atol=0.15)  # where the teacher is
    assert (np.abs(found[3.0]) < 0.6 * OFF).all(), found[3.0]


def test_a_critic_asks_the_second_network_of_films_alone_and_leaves_its_error():
    calls = []

    class Counted(Misled):
        def second(self, *given, **rules):
            network = super().second(*given, **rules)
            return lambda x, call, carry: calls.append(call) or network(x, call, carry)

    params = Counted(adversarial=3.0).init(jax.random.key(0))
    second = {name: params[name] for name in ("score", "critic")}
    given, errors = (params, batch_of(64), call_of(params)), []
    for weight, most in ((0.0, 1), (3.0, 3)):
        errors.append(Counted(adversarial=weight).score_loss(second, *given)[1]["score_loss"])
        assert len(calls) == most  # one call without a critic, two with it
    assert errors[0] == errors[1] > 0


def system_of(chunks=True, **rules):
    matrix: Any = CachedMatrix(AutoregressiveMatrix(), 2) if chunks else SynchronousMatrix()
    given = {"levels": ExplicitLevels((1.0, 0.6, 0.0)), "solver": Consistency()}
    given |= {"matrix": matrix, "policy": CachedCausal(2) if chunks else None}
    given |= {"guidance": Unguided(), **rules}
    return dataclasses.replace(SYSTEM, sampling=dataclasses.replace(SYSTEM.sampling, **given))


@pytest.fixture(scope="module")
def objective(tmp_path_factory):
    folder = write_weights(tmp_path_factory.mktemp("teacher"))
    return DistributionMatching(system_of(), str(folder), score_updates=2)


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["plain", "critic"])
def real(objective, request):
    """Returns parameters, what is frozen, a batch, and updates in which one player stands."""
    objective = dataclasses.replace(objective, adversarial=request.param)
    params, frozen = drawn(objective.init, jax.random.key(1)), objective.frozen()
    tokens = jnp.asarray(SYSTEM.text.read(("a red ball", "a blue box"))[0])
    batch = {"latents": jax.random.normal(jax.random.key(0), SHAPE), "tokens": tokens}

    @jax.jit
    def moved(student, score):
        rated = Players(optax.scale(-student), optax.scale(-score))
        return objective.update(params, rated.init(params), batch, call_of(params, frozen), rated)

    return params, moved


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


def test_a_players_update_leaves_the_others_parameters_bit_identical(real):
    params, moved = real
    second = [name for name in ("score", "critic") if name in params]
    for rates, stands, moves in (((0.0, 0.1), ["model"], second), ((0.1, 0.0), second, ["model"])):
        after = moved(*rates)
        assert all(differ(after.params[name], params[name]) == 0.0 for name in stands)
        assert all(differ(after.params[name], params[name]) > 0.0 for name in moves)
        assert np.isfinite([after.loss, after.gradient_norm, *after.metrics.values()]).all()


def test_a_critic_sees_through_the_second_network_and_says_nothing_at_first(objective):
    objective = dataclasses.replace(objective, adversarial=0.5)
    params, frozen = drawn(objective.init, jax.random.key(1)), objective.frozen()
    tokens = jnp.asarray(SYSTEM.text.read(("a red ball", "a blue box"))[0])
    clips, key = jax.random.normal(jax.random.key(3), SHAPE), jax.random.key(4)

    @jax.jit
    def judged(second, clips):
        return objective.judged(second, frozen, tokens, clips, key)[1]

    second = {name: params[name] for name in ("score", "critic")}
    assert not np.any(judged(second, clips))
    second["critic"] = jax.tree.map(lambda leaf: leaf + 0.1, second["critic"])
    slope, of_clips = jax.grad(lambda *given: judged(*given).sum(), (0, 1))(second, clips)
    layers = slope["score"]["layers"]["mlp"]
    sizes = [float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(layers)]
    assert min(sizes) > 0  # the second network learns to tell them too
    assert float(jnp.abs(of_clips).min(-1).max()) > 0


def test_a_second_network_begins_as_the_teacher(objective, real):
    params, _ = real
    x, t = jax.random.normal(jax.random.key(3), SHAPE), jnp.full(SHAPE[:2], 0.5)
    frozen = objective.frozen()
    tokens = jnp.asarray(SYSTEM.text.read(("a red ball", "a blue box"))[0])
    plain = dataclasses.replace(objective, guidance=1.0)
    network = objective.second(params["score"], frozen, tokens)
    mine = make_denoiser(network, SYSTEM.process)(x, Call.at(t), None)[0].x0
    np.testing.assert_allclose(mine, plain.real(frozen, tokens, x, t), atol=1e-5)
    assert float(jnp.abs(mine - objective.real(frozen, tokens, x, t)).max()) > 1e-3  # guided


def test_it_is_an_objective_of_two_players_whose_folder_is_sampled_as_it_was_trained(objective):
    protocols = (HasComponents, HasFrozen, HasUpdate, HasRules)
    assert all(isinstance(objective, protocol) for protocol in protocols)
    rules: Any = {name: from_data(rule) for name, rule in objective.rules.items()}
    assert rules["sampling"] == objective.system.sampling
    params = jax.eval_shape(objective.init, jax.random.key(0))
    assert set(objective.components(params)) == {"text", "model"}
    assert to_data(from_data(to_data(objective))) == to_data(objective)


def test_a_share_of_runs_is_made_chunk_after_chunk(objective):
    rolling: Any = {"matrix": CachedMatrix(LagMatrix(1), 1), "policy": CachedCausal(3, free=True)}
    batch = {"latents": jnp.zeros(SHAPE)}
    batch["tokens"] = jnp.asarray(SYSTEM.text.read(("a red ball", "a blue box"))[0])
    student = drawn(SYSTEM.init_denoiser, jax.random.key(1))

    @functools.partial(jax.jit, static_argnums=0)
    def rolled(objective, key):
        return objective.roll(student, batch, key).made

    def made(share, matrix=rolling["matrix"]):
        system = system_of(**{**rolling, "matrix": matrix})
        return dataclasses.replace(objective, system=system, chunkwise=share)

    chunks = made(0.0, CachedMatrix(AutoregressiveMatrix(), 1))
    keys = [jax.random.key(seed) for seed in range(6)]
    waves, chunks, some = (
        [rolled(way, key) for key in keys] for way in (made(0.0), chunks, made(0.5))
    )
    found = [[differ(one, two[i]) < 1e-5 for two in (waves, chunks)] for i, one in enumerate(some)]
    assert all(any(both) for both in found) and not any(all(both) for both in found)
    assert {tuple(both) for both in found} == {(True, False), (False, True)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"score_updates": 0}, "score_updates is 0"),
        ({"score_rate": 0.0}, "score_rate 0"),
        ({"adversarial": -1.0}, "adversarial is -1"),
        ({"chunkwise": 0.5}, "chunkwise is 0.5, with CachedMatrix"),
        ({"system": system_of(guidance=ClassifierFree(2.0))}, "of the prompt alone"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(objective, changes, says):
    with pytest.raises(ConfigError, match=says):
        dataclasses.replace(objective, **changes)


def test_a_teacher_that_is_not_there_is_refused_before_the_first_step():
    with pytest.raises(WeightsError):
        DistributionMatching(system_of(), "no/such/folder").init(jax.random.key(0))


@pytest.fixture(scope="module")
def meshed(run_python):
    """Returns what a process of eight devices says, without a critic and with one."""
    given = ("data=2,fsdp=2,tensor=2", "0", "0.5")
    done = run_python("-m", "tests.training.meshed_players", *given, timeout=900, check=True)
    return dict(zip(given[1:], map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["0", "0.5"], ids=["plain", "critic"])
def test_players_on_eight_devices_move_as_on_one(meshed, weight):
    """In parts of how far a step moves them."""
    found = meshed[weight]
    players, losses = {"model", "score"}, {"loss", "score_loss"}
    if weight != "0":
        players, losses = players | {"critic"}, losses | {"unfooled", "critic_loss"}
    assert min(found.pop(f"{name} moved") for name in players) > 0.01
    assert set(found) == players | losses
    assert max(found.values()) < 1e-4, found
