"""A game that is played frame after frame: actions, caches and guesses of Next-Frame Diffusion."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli, live
from jvdm.live import Play, Playout, Script
from jvdm.models.conditions import Conditions
from jvdm.pipeline import Pipeline, Request, programs, streaming
from jvdm.pipeline.foresight import Foresight
from jvdm.pipeline.session import Act, Prompt, begin_session, command_of, load_session
from jvdm.recipes import load_system
from jvdm.samplers import Call, accept, speculate, stream
from jvdm.training.distillation import Distillation
from jvdm.training.distribution_matching import DistributionMatching
from jvdm.training.objective import TrainCall
from jvdm.training.targets import Point
from jvdm.values import to_data
from jvdm.weights import read_manifest, safetensors, write_manifest
from jvdm.world.actions import ACTIONS, TURN
from jvdm.world.scene import World
from tests.generate import nano
from tests.generate.test_session import steps
from tests.systems import played_motion

PROMPT, OTHER = "a large red ball rests", "a small blue box rests"
MODEL = nano.DIT.clone(ports=("text", "actions"), actions=ACTIONS)
PLAYED = dataclasses.replace(nano.SYSTEM, model=MODEL)
LEFT, STOP = Act("push left"), Act("stop")


@pytest.fixture(scope="module")
def played() -> Any:
    """The random model with a table of actions that has an effect."""
    params: Any = nano.drawn(PLAYED.init, jax.random.key(0))
    table = params["model"]["actions_in"]
    assert table.shape == (len(ACTIONS), MODEL.width) and not np.asarray(table).any()
    params["model"]["actions_in"] = jax.random.normal(jax.random.key(1), table.shape)
    return Pipeline(load_system("nfd", PLAYED), params, nano.MANIFEST)


def begun(played, **settings):
    return begin_session(played, Request(prompt=PROMPT, seed=0, **settings), keep="2s")


def test_a_port_that_was_not_trained_changes_nothing_and_one_that_was_its_own_frame():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4, 4))
    t = jnp.full((1, 3), 0.5)
    params: Any = nano.drawn(PLAYED.init_denoiser, jax.random.key(0))
    ids = jax.tree.map(jnp.asarray, nano.TEXT.read((PROMPT,))[0])
    text = PLAYED.told(params, ids).text
    model = MODEL.clone(depth=1)
    first: Any = model.init(jax.random.key(0), x, Call.at(t), Conditions(text), None)["params"]

    @jax.jit
    def said(params, actions):
        return model.apply({"params": params}, x, Call.at(t), Conditions(text, actions=actions))[0]

    held = jnp.array([[1, 5, 3]])
    np.testing.assert_array_equal(said(first, held), said(first, -jnp.ones_like(held)))
    table = jax.random.normal(jax.random.key(1), first["actions_in"].shape)
    trained = {**first, "actions_in": table}
    one, other = (np.asarray(said(trained, held.at[0, 2].set(n))) for n in (3, 4))
    assert np.abs(one[:, 2] - other[:, 2]).max() > 1e-3
    absent = np.asarray(said(trained, -jnp.ones_like(held)))
    np.testing.assert_array_equal(absent, said(first, held))


def test_a_model_has_the_port_and_its_actions_or_neither():
    x, t = jnp.zeros((1, 1, 2, 2, 4)), jnp.zeros((1, 1))
    for model in (nano.DIT.clone(actions=("stop",)), nano.DIT.clone(ports=("text", "actions"))):
        with pytest.raises(jvdm.ConfigError, match="give both, or neither"):
            model.apply({"params": {}}, x, Call.at(t), Conditions())


def test_an_action_is_done_from_the_next_chunk_on_until_another(played):
    session, _ = steps(begun(played), 2)
    assert session.action == "none"
    acted, left = steps(session, 3, LEFT)
    assert (session.action, acted.action) == ("none", "push left")
    _, plain = steps(session, 3)
    assert (np.abs(left.astype(int) - plain).reshape(3, -1).max(1) > 0).all()
    _, same = steps(session.after(Act("none")), 3)
    np.testing.assert_array_equal(same, plain)
    _, stopped = steps(steps(session, 1, LEFT)[0], 2, STOP)
    assert (np.abs(stopped.astype(int) - left[4:]).reshape(2, -1).max(1) > 0).all()
    told, _ = steps(acted, 1, Prompt(OTHER))
    assert (told.prompt, told.action) == (OTHER, "push left")
    back = told.after("rewind 1s")
    assert (back.prompt, back.action) == (PROMPT, "push left")


def test_a_saved_game_goes_on_with_its_action(played, tmp_path):
    session, _ = steps(begun(played), 2, LEFT)
    session.save(tmp_path / "s.safetensors")
    again = load_session(played, tmp_path / "s.safetensors")
    assert again.action == "push left"
    np.testing.assert_array_equal(steps(again, 2)[1], steps(session, 2)[1])


def told_of(session, *actions):
    """What the network is told of chunks, one action each."""
    said = session.run.told[-1]
    return [streaming.acting(session.job, said, action).conditions for action in actions]


@pytest.mark.parametrize(
    ("actions", "right"),
    [(["stop"] * 4, 4), (["stop", "stop", "push left", "stop"], 2), (["push left", "stop"], 0)],
    ids=["all", "two", "none"],
)
def test_guesses_of_an_action_are_the_frames_that_would_be_made_and_leave_no_trace(
    played, actions, right
):
    """With a cache: what was dropped is in no key or value of what goes on."""
    session, _ = steps(begun(played), 3)
    job, state = session.job, session.run.state
    network = streaming.network(played, job)

    def step(state, told):
        return programs.stream_chunk(*network, told, job.rows, state)

    (guess,) = told_of(session, "stop")
    taken, kept = accept(speculate(step, state, guess, 4), told_of(session, *actions))
    plain = list(stream(step, state, told_of(session, *actions)))
    assert len(kept) == right
    for made, (_, expected) in zip(kept, plain, strict=False):
        np.testing.assert_array_equal(made, expected)
    expected = plain[right - 1][0] if right else state
    jax.tree.map(np.testing.assert_array_equal, _numbers(taken), _numbers(expected))
    rest = list(stream(step, taken, told_of(session, *actions[right:])))
    for (_, made), (_, expected) in zip(rest, plain[right:], strict=True):
        np.testing.assert_array_equal(made, expected)


def _numbers(state):
    """A state whose keys are numbers."""

    def plain(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(plain, state)


def test_chunks_of_a_game_are_one_program_and_a_state_of_one_size(played):
    session = begun(played)
    sizes = []
    for chunk in range(40):
        session, _ = session.step(Act(ACTIONS[chunk % len(ACTIONS)]))
        if chunk in (2, 39):
            arrays = [x.nbytes for x in jax.tree.leaves((session.run.state, session.run.decoder))]
            sizes.append((arrays, programs.stream_chunk._cache_size()))
    assert sizes[0] == sizes[1]


def filmed(played, ahead, *lines, frames=45):
    """The frames of a film that lines steer, and what was made ahead of them."""
    matrix = dataclasses.replace(played.system.sampling.matrix, ahead=ahead)
    sampling = dataclasses.replace(played.system.sampling, matrix=matrix)
    pipe = dataclasses.replace(played, system=dataclasses.replace(played.system, sampling=sampling))
    play = Play(Script(dict(lines), 12.0), Playout(12.0, 0.0))
    made = list(play.chunks(begun(pipe, num_frames=frames)))
    return np.concatenate(made), play.ahead


class Eager(Foresight):
    """Has made a chunk whenever a line may come: what nobody asks for then is dropped."""

    def follow(self, run):
        super().follow(run)
        if self._guesses:
            self._guesses[0].work.result()


def test_a_film_with_guesses_has_the_frames_of_one_without(played, monkeypatch):
    """Chunks of four frames after one: a line at 1 s is that of the fifth chunk."""
    lines = (("0.9s", "act push left"), ("1.9s", "act stop"), ("2.9s", "rewind 1s"))
    plain, none = filmed(played, 0, *lines)
    assert none == {} and len(plain) == 45 + 12
    monkeypatch.setattr(live, "Foresight", Eager)
    found, counts = filmed(played, 3, *lines)
    np.testing.assert_array_equal(found, plain)
    # The first chunk, and those after the three lines, nobody could have made.
    chunks = 1 + 56 // 4
    assert counts["chunks_ahead"] == chunks - 4 and counts["chunks_dropped"] >= 3
    rows = counts["calls_ahead"] // counts["chunks_ahead"]
    assert rows == 4 and counts["calls_dropped"] == rows * counts["chunks_dropped"]


def test_guesses_end_with_the_film_and_count_in_what_is_held(played):
    _, counts = filmed(played, 4, frames=13)
    assert counts["chunks_ahead"] == 3 and counts["chunks_dropped"] == 0
    matrix = played.system.sampling.matrix
    for fields, message in (
        ({"ahead": -1}, "-1 chunks of a stream"),
        ({"rewrite": 1}, "another prompt changes what a cache holds"),
    ):
        rules = {"matrix": dataclasses.replace(matrix, **fields)}
        sampling = dataclasses.replace(played.system.sampling, **rules)
        system = dataclasses.replace(played.system, sampling=sampling)
        with pytest.raises(jvdm.ConfigError, match=message):
            begun(dataclasses.replace(played, system=system))


def test_a_guess_that_fails_is_an_error_where_it_is_needed_only(played, monkeypatch):
    def broken(step, state, told, count):
        raise jvdm.NumericsError("a guess", "it is none", "")

    monkeypatch.setattr("jvdm.pipeline.foresight.speculate", broken)
    with pytest.raises(jvdm.NumericsError, match="a guess"):
        filmed(played, 2)
    lines = [(f"{(1 + 4 * n) / 12 - 0.02:.4f}s", f"act {ACTIONS[1 + n % 2]}") for n in range(3)]
    assert len(filmed(played, 2, *lines, frames=13)[0]) == 13


@pytest.fixture(scope="module")
def folder(played, tmp_path_factory):
    """Weights of the same model."""
    path = nano.write_weights(tmp_path_factory.mktemp("played"))
    model = {"model": to_data(MODEL)}
    manifest = read_manifest(path)
    components = {**manifest.components, **model}
    write_manifest(path, dataclasses.replace(manifest, components=components))
    safetensors.save(path / "model.safetensors", played.params["model"], dtype="float32")
    return path


def test_the_command_takes_actions_as_lines(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)

    def run(*options, system: str | None = "nfd", weights=folder):
        words = ["stream", PROMPT, "--seed", "0", "--weights", str(weights), "--duration", "1s"]
        words += ["--output", str(tmp_path / "film.mp4"), "--json", *options]
        words += ["--system", system] if system else []
        return cli.main(words), capsys.readouterr()

    code, said = run("--at", "0.4s", "act push left")
    assert code == 0 and "'act push left' is carried out at 0.42 s" in said.err
    result = json.loads(said.out)
    stream = result["videos"][0]["system"]["stream"]
    assert stream["chunks_ahead"] == result["delivery"]["chunks_ahead"] == 2
    assert "2 chunks (8 calls of the network) were made before" in live.text(result["delivery"])
    for options, changes, message in (
        (("--at", "0.4s", "act jump"), {}, "the action 'jump'; this model knows none, push left"),
        (("--at", "0.4s", "act stop"), {"weights": "nano"}, "this model knows none; use one"),
        ((), {"system": None}, "3 latent frames in work; an action is that of a chunk"),
    ):
        code, said = run(*options, **changes)
        assert code == 2 and message in said.err


def test_lines_of_actions_are_commands():
    assert command_of("act push left\n") == LEFT
    with pytest.raises(jvdm.ConfigError, match="is no command; .*act NAME"):
        command_of("act ")


@pytest.mark.slow  # renders twelve short films and the ground from 73 sides
def test_what_is_read_of_true_films_is_what_was_done_in_them():
    world = World(height=64, width=64, num_frames=9, fps=6.0, substeps=12)
    films = {
        name: np.stack(played_motion.true_films(name, 3, world))
        for name in ("push right", "push closer", "turn left", "stop")
    }
    turned = films["turn left"][:, played_motion.AXES.index("turned")]
    angle = -TURN * 4 * played_motion.HELD / world.fps
    np.testing.assert_allclose(turned, angle, atol=0.025)  # angles of the bank
    for name in ("push right", "push closer"):
        axis, sign = played_motion.WAYS[name]
        assert (sign * films[name][:, axis] > played_motion.LEAST[axis]).all()
        np.testing.assert_array_equal(films[name][:, 2], 0)
    assert played_motion.share("stop", list(films["stop"])) == "1.00"


@pytest.fixture(scope="module")
def distilled(played, tmp_path_factory) -> Distillation:
    """A student of one frame behind true ones, whose teacher is the random played model."""
    folder = tmp_path_factory.mktemp("teacher")
    for name in ("text", "model"):
        safetensors.save(folder / f"{name}.safetensors", played.params[name], dtype="float32")
    nano.write_vae(folder)
    components = {**nano.MANIFEST.components, "model": to_data(MODEL)}
    write_manifest(folder, dataclasses.replace(nano.MANIFEST, components=components))
    rules: Any = {"edges": (1.0, 0.0), "target": "consistency", "source": "stream", "chunk": 1}
    return Distillation(PLAYED, str(folder), micro=4, **rules)


def test_a_student_of_few_steps_and_its_teacher_are_told_what_is_done(played, distilled):
    actions = jnp.asarray([[1, 1, 2], [2, 4, 4]])
    tokens = jnp.asarray(nano.TEXT.read((PROMPT, OTHER))[0])
    batch = {"latents": jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 4)), "tokens": tokens}
    frozen = distilled.frozen()
    call = TrainCall(jnp.int32(0), jax.random.key(5), played.params, frozen)
    t = jnp.full((2, 3), 0.75)
    point = Point(batch["latents"], t, jnp.zeros_like(t))

    @jax.jit
    def found(actions):
        def loss(params):
            return distilled.loss(params, {**batch, "actions": actions}, call)[0]

        end = distilled.walk(frozen, tokens, call.key, point, 1, actions)
        return end, jax.grad(loss)(played.params)["model"]["actions_in"]

    (end, slope), (other, _) = found(actions), found(actions.at[0, 1].set(5))
    moved = np.abs(end - other).max((2, 3, 4))
    assert moved[0, 1] > 1e-4 and (moved[1] == 0).all()
    told = np.abs(slope).max(1)
    assert set(np.flatnonzero(told)) <= {1, 2, 4} and (told[[2, 4]] > 0).any()


def test_a_teacher_that_was_not_played_teaches_nobody_who_is(distilled, tmp_path):
    plain = nano.write_weights(tmp_path)
    with pytest.raises(jvdm.ConfigError, match=f"told {len(ACTIONS)} actions, its teacher .* 0"):
        assert dataclasses.replace(distilled, teacher=str(plain)).taught
    with pytest.raises(jvdm.ConfigError, match="matching of clips that are played"):
        assert len(DistributionMatching(load_system("self_forcing", PLAYED), str(plain)).taught)
