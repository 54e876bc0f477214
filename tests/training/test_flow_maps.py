"""Flow maps: ends of jumps, the target of a known map, a student of any number of steps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import anyflow
from jvdm.errors import ConfigError
from jvdm.samplers import FlowMap, ShiftedLevels, Unguided
from jvdm.samplers.process import corrupt, expand
from jvdm.samplers.segments import divided
from jvdm.training.distillation import Distillation
from jvdm.training.objective import TrainCall
from jvdm.training.targets import TARGETS, FlowMaps, Point
from jvdm.values import from_data
from tests.generate.nano import SYSTEM
from tests.training import flow_toy as toy

SEGMENTS = divided(np.array([1.0, 0.0]), (1.0, 0.0), 16)
TOLD = dataclasses.replace(SYSTEM, model=SYSTEM.model.clone(next_share=0.25))
STD = 0.5  # of the clips of a normal law, whose flow is known


def mapped(x, t, s):
    """Returns the exact jump of a normal law from `t` to `s`."""
    wide = ((1 - level) ** 2 * STD**2 + level**2 for level in (s, t))
    return x * expand(jnp.sqrt(next(wide) / next(wide)), x)


def test_ends_are_drawn_below_for_whole_clips_in_the_shares_asked_for():
    t = jnp.asarray(SEGMENTS.points)[jax.random.randint(jax.random.key(1), (4000, 1), 0, 16)]
    t = jnp.broadcast_to(t, (4000, 3)).at[:, 0].set(0.0)
    s, told, width = (np.asarray(x) for x in FlowMaps().ends(jax.random.key(0), t, SEGMENTS))
    t = np.asarray(t)
    assert (s[:, 0] == 0).all() and (told[:, 0] == 0).all() and (width[:, 0] == 1).all()
    assert (s[:, 1] == s[:, 2]).all() and (s[:, 1] < t[:, 1]).all()
    still = told[:, 1] == t[:, 1]
    np.testing.assert_allclose(s[still, 1], t[still, 1] - 1 / 16, atol=1e-6)
    np.testing.assert_array_equal(told[~still], s[~still])
    np.testing.assert_allclose(width[:, 1], t[:, 1] - s[:, 1], atol=1e-6)
    # From noise a free jump ends at any of sixteen points; clean is one of them.
    noise = (t[:, 1] == 1) & ~still
    assert abs(still.mean() - 0.5) < 0.03
    assert abs((s[noise, 1] == 0).mean() - (0.5 + 0.5 / 16)) < 0.15
    assert len(np.unique(s[noise, 1])) > 12


def test_points_below_a_level_have_equal_chances():
    segments = divided(np.array([1.0, 0.0]), (1.0, 0.5, 0.0), 4)
    draws = jnp.linspace(0, 1, 4001)[None, :-1]
    for level, below in ((1.0, (0.875, 0.75, 0.625, 0.5)), (0.5, (0.375, 0.25, 0.125, 0.0))):
        ends = segments.some(jnp.full((1, 4000), level), draws)
        found, counts = np.unique(ends, return_counts=True)
        np.testing.assert_allclose(found, sorted(below), atol=1e-6)
        np.testing.assert_allclose(counts, 1000, atol=2)
    ends = segments.some(jnp.zeros((1, 3)), jnp.asarray([[0.0, 0.5, 0.99]]))
    np.testing.assert_array_equal(ends, 0.0)


def test_the_exact_map_of_a_known_flow_is_what_the_target_asks_for_and_jumps_compose():
    t = jnp.asarray([[1.0, 0.75, 0.5], [1.0, 0.25, 0.0625]])
    s = jnp.asarray([[0.0, 0.25, 0.4375], [0.9375, 0.125, 0.0]])
    x = jax.random.normal(jax.random.key(0), (2, 3, 1, 1, 4))
    middle = 0.5 * (t + s)
    np.testing.assert_allclose(
        mapped(mapped(x, t, middle), middle, s), mapped(x, t, s), rtol=1e-5, atol=1e-6
    )

    def walk(point, steps):
        there = jnp.maximum(SEGMENTS.next(point.t), point.s)
        return mapped(point.x, point.t, there) if steps == 1 else jnp.full_like(x, jnp.nan)

    aim = TARGETS["flow_map"](Point(x, t, s), SEGMENTS, walk, mapped)
    np.testing.assert_allclose(aim, mapped(x, t, s), rtol=1e-5, atol=1e-6)
    plain = TARGETS["flow_map"](Point(x, t, s), SEGMENTS, walk, lambda x, t, s: x)
    assert np.abs(plain - aim)[0, 0].max() > 0.1  # a wrong average is another target


class Seen(toy.Toy):
    """A student that notes what it is asked in the loss."""

    def jump(self, params, told, x, t, s, end=None):
        """Says so in its loss: the level that it is told, at every place."""
        end = s if end is None else end
        return x + 0 * expand(s, x) + params * expand(end, x)


def test_a_student_is_told_its_own_level_where_it_learns_the_velocity(monkeypatch):
    objective = Seen(edges=(1.0, 0.0), micro=16)
    clean, key = toy.clips(jax.random.key(4), 64), jax.random.key(2)
    found = {}
    for still in (0.0, 1.0):
        monkeypatch.setitem(TARGETS, "segment", FlowMaps(still=still, whole=1.0 - still))
        call = TrainCall(jnp.int32(0), key, jnp.zeros(()), {})
        loss = jax.grad(
            lambda p, call: objective.loss(p, {"latents": clean, "tokens": None}, call)[0]
        )
        found[still] = float(loss(jnp.zeros(()), call))
    assert found[0.0] == 0.0 != found[1.0]  # jumps to clean ones are told 0


def test_a_folder_of_a_flow_map_is_sampled_in_any_number_of_jumps():
    objective = Distillation(TOLD, edges=(1.0, 0.0), target="flow_map")
    sampling: Any = from_data(objective.rules["sampling"])
    assert sampling.levels == ShiftedLevels(3, 2.0) and sampling.solver == FlowMap()
    assert sampling.guidance.settled() == Unguided()


def test_what_cannot_be_a_flow_map_is_refused():
    with pytest.raises(ConfigError, match="not told where its jumps end.*next_share=0.25"):
        Distillation(SYSTEM, edges=(1.0, 0.0), target="flow_map")
    with pytest.raises(ConfigError, match="a flow map of streams"):
        Distillation(TOLD, edges=(1.0, 0.0), target="flow_map", source="stream")


def test_the_recipe_begins_as_the_shipped_network_and_has_a_gradient():
    objective: Any = anyflow.config().objective
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(objective.init, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    assert "time_next" in params["model"] and "time_next" in objective.system.model.silent
    assert objective.taught.segments.micro == 16 and objective.edges == (1.0, 0.0)
    assert not np.any(params["model"]["time_next"]["out"]["kernel"])


def net(params, x, t, s):
    """Returns the mean velocity of a network that is told both levels."""
    rate = jnp.array([1.0, 3.0, 9.0, 27.0])[None, None]
    waves = [f(v[..., None] * rate).reshape(len(t), -1) for v in (t, s) for f in (jnp.sin, jnp.cos)]
    hidden = jnp.concatenate([x.reshape(len(x), -1), *waves], -1)
    for kernel, bias in params[:-1]:
        hidden = jax.nn.silu(hidden @ kernel + bias[None])
    return (hidden @ params[-1][0] + params[-1][1][None]).reshape(x.shape)


class Jumps(toy.Toy):
    """The objective, whose student is that network."""

    def _check_jumps(self):
        """The network is told."""

    def jump(self, params, told, x, t, s, end=None):
        """Returns latents at `s`."""
        return x + expand(s - t, x) * net(params, x, t, s if end is None else end)


def begun():
    """Returns a student that says the teacher's velocity whatever it is told."""

    def loss(params, average, key):
        keys = jax.random.split(key, 4)
        t = jnp.broadcast_to(jax.random.uniform(keys[0], (toy.BATCH, 1)), (toy.BATCH, toy.FRAMES))
        x = corrupt(toy.PROCESS, (x0 := toy.clips(keys[1], toy.BATCH)), t, noise(keys[2], x0))
        said = toy.exact(x, toy.SimpleNamespace(t=t), None)[0]
        off = net(params, x, t, t * jax.random.uniform(keys[3], t.shape)) - (said.eps - said.x0)
        return jnp.mean(jnp.square(off))

    first = toy.fresh(jax.random.key(1), (8 + 64, 256, 256, 8))
    return toy.trained(loss, first, 1500, 2e-3)


def noise(key, like):
    return jax.random.normal(key, like.shape)


def distances(params, counts):
    """Returns the energy distance of clips in so many jumps."""
    found = []
    for count in counts:
        x = noise(jax.random.key(3), jnp.zeros((2048, toy.FRAMES, 1, 1, 2)))
        for level in range(count, 0, -1):
            t, s = (jnp.full(x.shape[:2], at / count) for at in (level, level - 1))
            x = x - expand(t - s, x) * net(params, x, t, s)
        found.append(float(toy.distance(x)))
    return np.asarray(found)


@pytest.mark.slow
def test_one_student_is_better_than_its_teacher_at_one_two_and_four_steps_and_rises_with_them():
    """Energy distances in 1, 2, 4 and 8 jumps; said of 1200 steps: teacher 1.40, .185, .0065."""
    counts = (1, 2, 4, 8)
    before = begun()
    params = toy.distilled(Jumps(edges=(1.0, 0.0), target="flow_map", micro=16), before, 800)
    found = distances(params, counts)
    teacher = [toy.distance(toy.made(toy.exact, np.linspace(1, 0, count + 1))) for count in counts]
    print(found, teacher, distances(before, counts))
    assert (found[:3] < np.array([0.06, 0.25, 0.95]) * teacher[:3]).all()
    assert (np.diff(found) < 0).all()
