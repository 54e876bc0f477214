"""Step caches: what they add, when they compute, and that they change nothing when they may not."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.models.blockwise import BlockWise
from jvdm.models.step_cache import (
    FirstBlockCache,
    MagCache,
    Seen,
    Stack,
    StepCache,
    TeaCache,
    relative_change,
    summary,
)
from jvdm.samplers import Call, Row, rectified_flow
from tests.models.small import DIT

TOKENS = jax.ShapeDtypeStruct((2, 3, 2, 4), jnp.dtype("float32"))
LEVELS = np.array([0.9, 0.7, 0.4, 0.35, 0.1], np.float32)


def call(t, t_next=None, row=0, frame=0, write=False) -> Call:
    shape = TOKENS.shape[:2]
    now, then = (
        jnp.broadcast_to(jnp.float32(x), shape) for x in (t, 0.0 if t_next is None else t_next)
    )
    return Call(now, then, Row(jnp.int32(row), jnp.int32(0), jnp.full(3, write), jnp.int32(frame)))


def seen(call, change=None, modulated=0.0) -> Seen:
    vectors = jnp.broadcast_to(call.t[..., None, None], (*call.t.shape, 6, 4))
    return Seen(call, vectors, lambda: jnp.full(TOKENS.shape, modulated), change)


def layers(change) -> Stack:
    """Three layers: each adds a third of `change`, and counts its runs in its state."""

    def run(tokens, first, end):
        states = {"runs": jnp.zeros(3)[first:end] + 1}
        return tokens + change * (end - first) / 3, states

    return Stack(run, {"runs": jnp.zeros(3)}, 3)


@dataclasses.dataclass
class Rows:
    """Calls one after the other."""

    cache: StepCache

    def __post_init__(self):
        self.kept = self.cache.init(TOKENS, 3)

    def __call__(self, change, call, modulated: Any = 0.0):
        """Returns what the call added, and whether it computed."""
        tokens, count = jnp.full(TOKENS.shape, 2.0), float(self.kept.calls[1])
        see = lambda made: seen(call, made, modulated)  # noqa: E731
        change = jnp.broadcast_to(jnp.asarray(change, jnp.float32), TOKENS.shape)
        after, states, self.kept = self.cache.through(layers(change), tokens, see, self.kept)
        computed = float(self.kept.calls[1]) > count
        ran = [1.0] * 3 if computed else [1.0] * self.cache.first + [0.0] * (3 - self.cache.first)
        assert states["runs"].tolist() == ran
        return np.asarray(after - tokens), computed


def test_a_row_that_reuses_adds_the_last_computed_change():
    rows = Rows(StepCache(longest=2))
    did = [rows(i + 1, call(t, row=i)) for i, t in enumerate(LEVELS)]
    assert [computed for _, computed in did] == [True, False, False, True, False]
    assert [added.mean() for added, _ in did] == [1, 1, 1, 4, 4]
    assert summary(rows.kept) == {"calls": 5, "computed": 2}
    assert summary(None) == {}


def test_layers_that_always_run_are_those_of_the_row():
    rows = Rows(FirstBlockCache(threshold=0.5, first=1))
    added = [
        rows(change, call(t, row=i))
        for i, (change, t) in enumerate(zip((3, 3.6, 6), LEVELS[:3], strict=True))
    ]
    assert [computed for _, computed in added] == [True, False, True]
    np.testing.assert_allclose([x.mean() for x, _ in added], [3, 3.6 / 3 + 3 * 2 / 3, 6], rtol=1e-6)


def test_first_blocks_are_compared_with_the_last_computed_row():
    """A slow drift adds up, although no row differs much from the one before it."""
    rows = Rows(FirstBlockCache(threshold=0.25, first=1, longest=99))
    changes = 1.0 * 1.1 ** np.arange(6)
    computed = [rows(x, call(0.9 - 0.1 * i, row=i))[1] for i, x in enumerate(changes)]
    assert computed == [True, False, False, True, False, False]


def test_the_line_through_two_changes_is_exact_where_they_lie_on_one():
    """In the level of every frame, whatever the distances are."""
    rows = Rows(StepCache(longest=1, order=1, above=2.0))
    shift = np.array([0.0, 0.05, 0.1], np.float32)[None, :]
    for i, t in enumerate((0.8, 0.7, 0.55, 0.5, 0.3)):
        levels = t + shift
        change = (3 - 2 * levels)[..., None, None]
        added, computed = rows(change, call(levels, row=i))
        assert computed == (i % 2 == 0)
        expected = 3 - 2 * (0.8 + shift) if i == 1 else 3 - 2 * levels  # one change is no line
        np.testing.assert_allclose(added[:, :, 0, 0], np.repeat(expected, 2, 0), rtol=1e-5)


def test_only_frames_that_move_ask():
    cache, first = TeaCache(threshold=0.1, signal="modulated"), np.array([0.5, 0.5, 0.0])
    still = np.array([0.4, 0.4, 0.0])
    for moves, needed in ((still, False), (np.array([0.4, 0.4, -1.0]), True)):
        rows = Rows(cache)
        rows(1, call(first, first - 0.1, 0), modulated=1.0)
        values = jnp.ones(TOKENS.shape).at[:, 2].set(9.0)  # the last frame changed
        _, computed = rows(1, call(np.array([0.4, 0.4, 0.0]), moves - 0.1 * (still > 0), 1), values)
        assert computed == needed


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ({"row": 1, "frame": 4}, "another window"),
        ({"row": 1, "write": True}, "keys and values are kept"),
        ({"t": 0.95, "row": 1}, "noisier than the change was"),
        ({"t": 0.05, "row": 1}, "cleaner than the rule reuses"),
    ],
)
def test_what_no_change_holds_for_is_computed(then, why):
    rows = Rows(StepCache(longest=9, above=2.0, below=0.1))
    rows(1, call(0.9))
    assert rows(2, call(**{"t": 0.8, **then}))[1], why
    assert not rows(3, call(0.7, row=2, frame=then.get("frame", 0)))[1] or "t" in then


def test_all_evaluations_of_a_row_do_the_same():
    rows = Rows(StepCache(longest=1, above=2.0))
    did = []
    for row, (t, t_next) in enumerate(zip(LEVELS, LEVELS[1:], strict=False)):
        did += [rows(1, call(t, t_next, row))[1], rows(1, call(t_next, t, row))[1]]
    assert did == [True, True, False, False, True, True, False, False]


def test_changes_of_the_modulated_tokens_add_up():
    rows = Rows(TeaCache(threshold=0.25, coefficients=(2.0, 0.0), longest=99, above=2.0))
    values = (1.0, 1.05, 1.1, 1.16, 1.16, 5.0, 5.0)  # p(x): .1, .095, .109, 0; too far: 8
    computed = [rows(1, call(0.9 - 0.1 * i, row=i), v)[1] for i, v in enumerate(values)]
    assert computed == [True, False, False, True, False, True, False]


def test_a_polynomial_below_zero_saves_nothing_up():
    """Published ones fall below it outside of their fit, so that a threshold of 0 is not dense."""
    none = TeaCache(threshold=0.0, coefficients=(1.0, -1.0), above=2.0)
    below = TeaCache(threshold=0.5, coefficients=(-9.0, 0.5), above=2.0)  # p(0) = .5, p(1) < 0
    far = TeaCache(threshold=9.0, fitted=0.5, above=2.0)
    computed = {none: [True, True, True], below: [True, False, True], far: [True, True, False]}
    for cache, expected in computed.items():
        rows = Rows(cache)
        did = [rows(1, call(0.9 - 0.1 * i, row=i), v)[1] for i, v in enumerate((1, 2, 2))]
        assert did == expected, cache


def test_sizes_say_when_to_compute_whatever_the_steps_are():
    """Against the rule written out; levels alone decide."""
    levels, sizes = (0.0, 0.4, 1.0), (0.0, 1.0, 1.3)
    rule = MagCache(threshold=0.25, levels=levels, sizes=sizes, longest=5, above=2.0)
    for steps in (7, 20):
        grid, rows, error, since, age = np.linspace(0.95, 0.02, steps), Rows(rule), 0.0, None, 0
        for i, t in enumerate(grid):
            size = np.interp(t, levels, sizes)
            grows = 0 if since is None else abs(1 - np.exp(size - since))
            needed = since is None or error + grows >= 0.25 or age >= 5
            error, age = (0.0, 0) if needed else (error + grows, age + 1)
            since = size if needed else since
            assert rows(1, call(t, row=i))[1] == needed, (steps, i)


def test_relative_change_is_of_each_frame():
    before = jnp.ones(TOKENS.shape)
    now = before * jnp.array([1.0, 1.5, 0.0])[None, :, None, None]
    np.testing.assert_allclose(relative_change(now, before), [[0, 0.5, 1]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepCache(longest=-1), "longest of a step cache is -1; it counts"),
        (lambda: StepCache(order=2), "order of a step cache is 2.*use 0 or 1"),
        (lambda: StepCache(above=0.1, below=0.5), "from noise level 0.1 to 0.5; levels fall"),
        (lambda: TeaCache(threshold=-0.1), "threshold of a step cache is -0.1"),
        (lambda: MagCache(levels=(1.0, 0.0), sizes=(1.0, 1.0)), "they do not ascend"),
        (lambda: MagCache().told(rectified_flow()), "a MagCache of 0 levels and 0 sizes"),
        (
            lambda: MagCache(levels=(0.0, 1.0), sizes=(1.0,)).told(rectified_flow()),
            "of 2 levels and 1 sizes; it knows a network by the sizes",
        ),
        (lambda: FirstBlockCache(first=0), "without first layers; it decides by what they do"),
        (
            lambda: DIT.clone(cache=FirstBlockCache(first=3)).start(3, 4, 4),
            "3 layers run in every row; the network has 3",
        ),
        (
            lambda: BlockWise(DIT.clone(cache=StepCache()), 2, 1).start(8, 4, 4),
            "a step cache of a network of blocks",
        ),
    ],
)
def test_bad_rules_are_refused(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert re.search(message, str(caught.value), re.DOTALL), caught.value
