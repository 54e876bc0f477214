"""Distillation: targets, gradients, columns; and students that beat steps of a known teacher."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import nano, tiny_t2v_4step
from jvdm.errors import ConfigError, WeightsError
from jvdm.recipes import load_system
from jvdm.samplers import Euler, LagMatrix, ShiftedLevels, TwoScales
from jvdm.samplers.process import corrupt
from jvdm.samplers.segments import follow
from jvdm.samplers.timesteps import TrainTimes
from jvdm.training.distillation import Distillation
from jvdm.training.objective import HasComponents, HasFrozen, HasPasses, HasRules, TrainCall
from jvdm.training.targets import TARGETS, Point
from jvdm.values import from_data, to_data
from tests.generate.nano import SYSTEM, drawn, write_weights
from tests.training import flow_toy as toy

SHAPE = (4, 3, 2, 4, 4)
EDGES = (1.0, 0.75, 0.4, 0.0)


@pytest.fixture(scope="module")
def objective(tmp_path_factory):
    folder = write_weights(tmp_path_factory.mktemp("teacher"))
    return Distillation(SYSTEM, str(folder), EDGES, micro=2, given=0.5)


@pytest.fixture(scope="module")
def params():
    return drawn(SYSTEM.init_denoiser, jax.random.key(1))


def batch_of(latents=None):
    tokens = jnp.asarray(SYSTEM.text.read(("a red ball",) * SHAPE[0])[0])
    latents = jax.random.normal(jax.random.key(0), SHAPE) if latents is None else latents
    return {"latents": latents, "tokens": tokens}


@pytest.fixture(scope="module", params=["segment", "consistency"])
def gradients(request, objective, params):
    """Returns the gradient by the student, and by all else that the loss is told."""
    objective = dataclasses.replace(objective, target=request.param)
    frozen = objective.frozen()

    def loss(params, ema, frozen):
        call = TrainCall(jnp.int32(0), jax.random.key(5), ema, frozen)
        return objective.loss(params, batch_of(), call)[0]

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, params, frozen)


def size(tree):
    return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))


def test_only_the_student_has_a_gradient(gradients):
    mine, *others = gradients
    assert np.isfinite(size(mine)) and size(mine) > 0
    assert [size(other) for other in others] == [0.0, 0.0]


def test_a_jump_to_its_own_level_is_no_jump(objective, params):
    told = SYSTEM.told(params, batch_of()["tokens"])
    x, t = batch_of()["latents"], jnp.asarray([[1.0, 0.5, 0.0]] * 4)
    np.testing.assert_array_equal(objective.jump(params, told, x, t, t), x)
    there = objective.jump(params, told, x, t, 0.5 * t)
    assert (np.asarray(there != x).any((2, 3, 4)) == [True, True, False]).all()


def walk_of(marks):
    def walk(point, steps):
        marks.append(steps)
        return point.x + 100.0

    return walk


def test_a_consistency_target_at_the_border_is_what_the_teacher_says():
    segments, marks = toy.Toy(edges=toy.EVEN, micro=4).taught.segments, []
    # The last point of a segment, one inside of it, its first, and a frame that waits as noise.
    t = jnp.asarray([[0.8125, 0.875, 1.0, 1.0]])
    point = Point(jnp.zeros((1, 4, 1, 1, 2)), t, segments.end(t).at[0, 3].set(1.0))
    asked = []

    def jump(x, u, s):
        asked.append((u, s))
        return x + 1.0

    aim = TARGETS["consistency"](point, segments, walk_of(marks), jump)
    np.testing.assert_array_equal(aim[0, :, 0, 0, 0], [100.0, 101.0, 101.0, 100.0])
    np.testing.assert_allclose(asked[0][0], [[0.75, 0.8125, 0.9375, 1.0]])
    np.testing.assert_allclose(asked[0][1], [[0.75, 0.75, 0.75, 1.0]])
    assert marks == [1]
    aim = TARGETS["segment"](point, segments, walk_of(marks), jump)
    assert marks == [1, 4] and (aim == 100.0).all() and len(asked) == 1


def test_a_walk_guides_the_teacher_by_the_scale_that_is_asked_for(objective):
    frozen, tokens = objective.frozen(), batch_of()["tokens"]
    t = jnp.full((4, 3), 0.75)
    point, key = Point(batch_of()["latents"], t, jnp.full_like(t, 0.4)), jax.random.key(0)
    ends = {}
    for scale in (None, 1.0, 2.0, 4.0):
        changed = dataclasses.replace(objective, guidance=scale)
        ends[scale] = changed.walk(frozen, tokens, key, point, 1)
    np.testing.assert_allclose(ends[None], ends[2.0], atol=1e-6)  # the teacher's own
    # One Euler step is linear in the scale; and its first evaluation is of the prompt at 1.
    np.testing.assert_allclose(ends[4.0] - ends[1.0], 3 * (ends[2.0] - ends[1.0]), atol=1e-4)
    assert size(ends[2.0] - ends[1.0]) > 1e-3


def columns(objective, starts, seed=2):
    """Returns the loss of clips whose frames have the levels `starts`, of the exact teacher."""

    class Given(type(objective)):
        def rows(self, segments):
            def draw(key, batch, latent_frames):
                t = jnp.broadcast_to(jnp.asarray(starts), (batch, latent_frames))
                return TrainTimes(t, jnp.ones_like(t))

            return draw

    given = Given(
        **{
            f.name: getattr(objective, f.name)
            for f in dataclasses.fields(objective)
            if f.name != "system"
        }
    )
    params = toy.fresh(jax.random.key(1))
    clean = toy.clips(jax.random.key(4), 16)
    call = TrainCall(jnp.int32(0), jax.random.key(seed), params, {})
    return given.loss(params, {"latents": clean, "tokens": None}, call)[0]


@pytest.mark.parametrize("target", ["segment", "consistency"])
def test_one_level_for_all_frames_is_the_case_of_equal_columns(target):
    objective = toy.Toy(edges=toy.EVEN, target=target, micro=2)
    scalar = columns(objective, 0.5)
    assert scalar == columns(objective, [0.5] * toy.FRAMES)
    assert scalar != columns(objective, [0.5] * 3 + [0.75])


def test_clean_frames_do_not_count(monkeypatch):
    objective = toy.Toy(edges=toy.EVEN, micro=2)
    whole = columns(objective, [0.0] * toy.FRAMES)
    assert whole == 0.0
    mixed = [columns(objective, [0.0, 0.75, 0.75, 0.75])]
    jump = toy.Toy.jump

    def wrong_in_the_first(self, params, told, x, t, s, end=None):
        return jump(self, params, told, x, t, s).at[:, 0].add(9.0)

    monkeypatch.setattr(toy.Toy, "jump", wrong_in_the_first)
    mixed.append(columns(objective, [0.0, 0.75, 0.75, 0.75]))
    assert mixed[0] == mixed[1] > 0


def test_the_share_of_clips_with_given_frames_is_the_one_asked_for():
    for share in (0.0, 0.3, 1.0):
        objective = toy.Toy(edges=toy.EVEN, given=share)
        times = objective.rows(objective.taught.segments)(jax.random.key(0), 2000, 4)
        given = (np.asarray(times.t) == 0).any(1)
        assert abs(given.mean() - share) < 0.05
        np.testing.assert_array_equal(np.asarray(times.loss_mask) == 0, np.asarray(times.t) == 0)


def test_a_folder_of_a_student_is_sampled_at_its_edges_without_guidance(objective, params):
    protocols = (HasComponents, HasFrozen, HasPasses, HasRules)
    assert all(isinstance(objective, protocol) for protocol in protocols)
    rules = {name: from_data(rule) for name, rule in objective.rules.items()}
    sampling = rules["sampling"]
    np.testing.assert_allclose(sampling.levels(), EDGES, rtol=1e-6)
    assert sampling.guidance.settled().branches == ("prompt",)
    assert set(objective.components(params)) == {"text", "model"}
    assert to_data(from_data(to_data(objective))) == to_data(objective)


def test_a_step_costs_what_target_and_gradient_cost(objective):
    # In passes: 3 of the student, and 2 steps of 2 branches, or a step and a jump.
    for target, more in (("segment", 4.0), ("consistency", 3.0)):
        changed = dataclasses.replace(objective, target=target)
        assert changed.passes * (1 + more) == pytest.approx(3 + more)


def test_the_recipe_is_that_of_the_shipped_weights():
    made = tiny_t2v_4step.config()
    objective: Any = made.objective
    teacher = objective.taught
    shipped: Any = teacher.system.sampling
    assert len(objective.edges) == 5 and len(teacher.segments.points) == 17
    np.testing.assert_allclose(teacher.segments.points, shipped.levels(), atol=1e-5)
    assert isinstance(shipped.levels, ShiftedLevels)
    assert shipped.guidance == TwoScales(2.4, 2.8, 0.9) == made.objective.system.sampling.guidance
    assert made.start_from is not None and made.start_from.name == objective.teacher
    assert objective.system.model.clone(unroll=1, remat="matmuls") == teacher.system.model.clone(
        unroll=1, remat="matmuls"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"edges": (0.5, 0.75, 0.0)}, "do not descend"),
        ({"edges": ()}, "whole segments|do not descend"),
        ({"micro": 0}, "micro is 0"),
        ({"given": 1.5}, "it is a share"),
    ],
)
def test_what_cannot_be_taught_is_refused_at_once(changes, says):
    with pytest.raises(ConfigError, match=says):
        Distillation(SYSTEM, **changes)


def test_a_teacher_that_is_not_there_or_another_is_refused_before_the_first_step():
    with pytest.raises(WeightsError):
        Distillation(SYSTEM, "no/such/folder").init(jax.random.key(0))
    with pytest.raises(ConfigError, match="process or latents"):
        Distillation(SYSTEM, "tiny_t2v").init(jax.random.key(0))
    shipped: Any = nano.config().objective
    assert Distillation(shipped.system, "nano").taught.segments.edges == (1.0, 0.75, 0.5, 0.25, 0.0)


@pytest.fixture(scope="module")
def begun():
    return toy.begun(3000)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["segment", "consistency"])
def test_a_student_beats_as_many_steps_of_its_teacher(begun, target):
    """Energy distances: teacher .0065, student before .024; segment .0049, consistency .0047."""
    before = toy.distance(toy.made(toy.student(begun), toy.EVEN))
    teacher = toy.distance(toy.made(toy.exact, toy.EVEN))
    params = toy.distilled(toy.Toy(edges=toy.EVEN, target=target, micro=8), begun)
    after = toy.distance(toy.made(toy.student(params), toy.EVEN))
    assert after < 0.9 * teacher < 0.5 * before


def pushed(denoise, steps):
    """Returns a full buffer of a stream, each of its frames a segment further in so many steps."""
    clean = toy.clips(jax.random.key(20), 2048)
    t = jnp.broadcast_to(jnp.asarray(toy.EVEN[:4][::-1])[None], clean.shape[:2])
    x = corrupt(toy.PROCESS, clean, t, jax.random.normal(jax.random.key(21), clean.shape))
    rows = jnp.stack([t - 0.25 * step / steps for step in range(steps + 1)])
    return follow(denoise, Euler(), toy.PROCESS, rows, x, jax.random.key(0))


@pytest.mark.slow
def test_a_student_of_a_stream_moves_a_buffer_as_many_steps_of_its_teacher_do(begun):
    """Deviations from 32 steps: the teacher in one .067, student before .103, after .060."""
    exact = pushed(toy.exact, 32)

    def wrong(params):
        return float(jnp.sqrt(jnp.mean(jnp.square(pushed(toy.student(params), 1) - exact))))

    objective = toy.Toy(edges=toy.EVEN, micro=8, source="stream", chunk=1)
    assert wrong(toy.distilled(objective, begun)) < 0.7 * wrong(begun)


def test_a_student_of_a_stream_is_sampled_with_its_chunks_one_jump_apart(objective):
    streamed = dataclasses.replace(objective, source="stream", chunk=3)
    rules: Any = {name: from_data(rule) for name, rule in streamed.rules.items()}
    assert rules["sampling"].matrix == LagMatrix(lag=1, block=3)
    system = load_system("streamdit", dataclasses.replace(SYSTEM, sampling=rules["sampling"]))
    assert system.sampling.matrix == LagMatrix(lag=1, block=3)
    assert load_system("streamdit", SYSTEM).sampling.matrix == LagMatrix(lag=4, block=2)
    with pytest.raises(ConfigError, match="chunk is 0"):
        dataclasses.replace(streamed, chunk=0)
