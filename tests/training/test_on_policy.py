"""Flow maps that learn from clips of their own: their ways, exact maps, and a map that errs."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import anyflow_on_policy
from jvdm.errors import ConfigError
from jvdm.samplers import ExplicitLevels, FlowMap, LagMatrix, ShiftedLevels, Unguided
from jvdm.samplers.process import expand
from jvdm.system import Sampling
from jvdm.train import train
from jvdm.training.checkpoint import read_checkpoint
from jvdm.training.distribution_matching import DistributionMatching, parts_of
from jvdm.training.objective import TrainCall
from jvdm.training.on_policy import OnPolicyFlowMap
from tests.generate.nano import SYSTEM, drawn, write_weights
from tests.training import players
from tests.training.players import MEAN, STD, Normal

KEY = jax.random.key(3)
SAMPLING = Sampling(guidance=Unguided(), solver=FlowMap(), levels=ShiftedLevels(4, 3.0))
TOLD = dataclasses.replace(SYSTEM, model=SYSTEM.model.clone(next_share=0.25), sampling=SAMPLING)


def rolled(**rules):
    """Returns the told system, sampled by other rules."""
    return dataclasses.replace(TOLD, sampling=dataclasses.replace(SAMPLING, **rules))


def mapped(x, t, s, error=0.0):
    """Returns the exact jump of the law of `players`, and more of a jump by a share of `error`."""
    wide = [jnp.sqrt((1 - expand(v, x)) ** 2 * STD**2 + expand(v, x) ** 2) for v in (s, t)]
    means = [(1 - expand(v, x)) * MEAN for v in (s, t)]
    off = 1 + error * expand(t - s, x)
    return means[0] + off * (x - means[1]) * wide[0] / wide[1]


@dataclasses.dataclass(frozen=True)
class Mapped(OnPolicyFlowMap, Normal):
    """The objective of the known law, whose student has an error of its own."""

    forward: float = 0.0

    @property
    def on_films(self) -> Any:
        """The jump alone."""

        def jump(params, told, x, t, s):
            return mapped(x, t, s, params["model"]["error"])

        return SimpleNamespace(jump=jump, loss=lambda *_: (jnp.zeros(()), {}))

    def init(self, key):
        """Returns a student that errs by a half, and a second network that is the teacher."""
        return {**super().init(key), "model": {"error": jnp.full((1, 1, 1, 1, 1), 0.5)}}


def known(**fields):
    system: Any = dataclasses.replace(players.SYSTEM, sampling=SAMPLING)
    return Mapped(system=system, **fields)


def test_ways_lead_by_one_step_of_a_run_of_any_of_the_numbers_of_steps():
    objective = known(steps=(2, 4, 8))
    ways = np.asarray(objective.ways(jax.random.key(0), 6000))
    assert ways.shape == (6000, 4) and (ways[:, 0] == 1).all() and (ways[:, 3] == 0).all()
    steps = {}
    for count in objective.steps:
        grid = np.asarray(ShiftedLevels(count, 3.0)())
        steps |= {(*pair,): count for pair in zip(grid, grid[1:], strict=False)}
    found = [steps[(*pair,)] for pair in ways[:, 1:3]]
    shares = [found.count(count) / len(found) for count in objective.steps]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    of_two, counts = np.unique(ways[np.asarray(found) == 2, 1], return_counts=True)
    assert len(of_two) == 2 and abs(counts[0] / counts.sum() - 0.5) < 0.05


def test_clips_of_an_exact_map_are_those_of_one_jump_and_all_three_have_the_gradient():
    """`1 + error * length` for each jump: lengths add up to 1, and so does the slope at 0."""
    batch = {"latents": jnp.zeros((64, 2, 1, 1, 1)), "tokens": jnp.zeros((64, 1), jnp.int32)}
    none = jnp.zeros((1, 1, 1, 1, 1))

    def roll(steps):
        def made(error):
            return known(steps=steps).roll({"model": {"error": error}}, batch, KEY).made

        return jax.jvp(made, (none,), (none + 1,))

    (one, _), (some, slope) = roll((1,)), roll((2, 9))
    np.testing.assert_allclose(one, some, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, some - MEAN, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jnp.std(some, 0), STD[0], rtol=0.25)


def test_a_map_that_errs_is_mended_by_its_own_clips_alone(tmp_path):
    """It began with jumps that are half as far again from the mean."""
    experiment = dataclasses.replace(
        players.experiment(), objective=known(steps=(1, 2, 4), score_updates=5)
    )
    train(experiment, tmp_path)
    error = read_checkpoint(tmp_path / "checkpoints", None)[0]["ema/model/error"]
    assert np.abs(error).max() < 0.05, error


@pytest.fixture(scope="module")
def objective(tmp_path_factory):
    folder = write_weights(tmp_path_factory.mktemp("teacher"))
    return OnPolicyFlowMap(TOLD, str(folder), steps=(2, 4), micro=4)


def test_films_add_their_error_to_what_clips_say_and_every_part_of_the_student_moves(objective):
    params, frozen = drawn(objective.init, jax.random.key(1)), objective.frozen()
    tokens = jnp.asarray(SYSTEM.text.read(("a red ball", "a blue box"))[0])
    batch = {"latents": jax.random.normal(KEY, (2, 3, 2, 4, 4)), "tokens": tokens}
    call = TrainCall(jnp.int32(0), KEY, params, frozen)
    weighed = dataclasses.replace(objective, forward=2.0)
    student, second = parts_of(params)

    @jax.jit
    def losses(student):
        def both(student):
            return weighed.loss({**student, **second}, batch, call)

        film = objective.on_films.loss(student, batch, call)[0]
        matched = DistributionMatching.loss(objective, params, batch, call)[0]
        return film, matched, jax.value_and_grad(both, has_aux=True)(student)

    film, matched, ((both, metrics), slopes) = losses(student)
    assert metrics["forward_loss"] == film > 0
    np.testing.assert_allclose(both, matched + 2 * film, rtol=1e-6)
    assert (
        min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slopes["model"]["layers"])) > 0
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"past": "true"}, "with past true"),
        ({"system": rolled(matrix=LagMatrix(1))}, "chunkwise 0 and LagMatrix"),
        ({"steps": ()}, "steps are \\(\\)"),
        ({"steps": (0, 2)}, "a run has a step"),
        ({"forward": -1.0}, "forward is -1"),
        (
            {"system": dataclasses.replace(SYSTEM, sampling=SAMPLING)},
            "not told where its jumps end",
        ),
        ({"system": rolled(levels=ExplicitLevels((1.0, 0.5, 0.0)))}, "sampled at ExplicitLevels"),
    ],
)
def test_what_is_no_flow_map_of_many_steps_is_refused_at_once(objective, changes, says):
    with pytest.raises(ConfigError, match=says):
        dataclasses.replace(objective, **changes)


def test_the_recipe_goes_on_with_the_flow_map_of_its_first_stage():
    objective: Any = anyflow_on_policy.config().objective
    assert objective.on_films.target == "flow_map" and objective.steps == (2, 4, 8, 16, 50)
    assert objective.stops.shape == (5, 51)
    assert np.asarray(objective.stops)[0, 2:].max() == 0
