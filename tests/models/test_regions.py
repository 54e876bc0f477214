"""Regions: rows that run some tokens, which ones, and what the others are left with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import Draft, KeptKeys
from jvdm.errors import ConfigError
from jvdm.models.conditions import TextStates
from jvdm.models.regions import Focus, Regions
from jvdm.models.step_cache import StepCache, summary
from jvdm.samplers import Call, Row
from tests.models.small import DIT, SHAPE, conditions, latents, parameters

HALF = Regions(share=0.5)


def call(row, t=0.5, t_next=0.4, write=False):
    levels, later = (jnp.broadcast_to(jnp.float32(x), SHAPE[:2]) for x in (t, t_next))
    place = Row(jnp.int32(row), jnp.int32(0), jnp.full(SHAPE[1], write), jnp.int32(0))
    return Call(levels, later, place)


@functools.cache
def program(cache):
    model = DIT.clone(cache=cache)

    def apply(params, x, call, carry):
        return model.apply({"params": params}, x, call, conditions(), carry)

    return model, jax.jit(apply)


def rows(cache, inputs, **call_fields):
    """Predictions of some rows, and the last carry."""
    model, apply = program(cache)
    carry, made = model.start(*SHAPE[1:4], batch=SHAPE[0]), []
    for row, x in enumerate(inputs):
        out, carry = apply(parameters(), x, call(row, **call_fields), carry)
        made.append(np.asarray(out))
    return made, carry


def drifting(count):
    return [latents() + 0.05 * row * latents(1) for row in range(count)]


def test_where_nothing_changed_some_tokens_are_as_all():
    (full, some, later), carry = rows(HALF, [latents()] * 3)
    scale = np.abs(full).max()
    np.testing.assert_allclose(some, full, atol=1e-5 * scale)
    np.testing.assert_allclose(later, full, atol=1e-5 * scale)
    assert summary({"carry": carry}) == {"calls": 3, "computed": 2}


def test_all_tokens_are_the_plain_network():
    levels = {"t": np.linspace(0.4, 0.8, SHAPE[1]), "t_next": 0.3}  # every frame has its own
    made, carry = rows(Regions(share=1.0), drifting(3), **levels)
    assert not carry.reused.computes  # by the way of some tokens
    plain, _ = rows(None, drifting(3), **levels)
    for one, other in zip(made, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_tokens_that_run_are_new_and_the_others_keep_what_they_had():
    inputs = drifting(2)
    first = rows(HALF, inputs[:1])[1].reused
    _, carry = rows(HALF, inputs)
    changes = [np.asarray(x.change[0]).reshape(2, 12, -1) for x in (first, carry.reused)]
    ran = np.asarray(carry.reused.signal.waited) == 0
    assert ran.sum() == 6 and np.array_equal(np.flatnonzero(ran), carry.layers.places[0])
    np.testing.assert_array_equal(changes[0][:, ~ran], changes[1][:, ~ran])
    moved = np.abs(changes[0] - changes[1]).max((0, 2))
    assert (moved[ran] > 1e-3).all()


def test_fresh_tokens_see_each_other_and_the_kept_keys_of_the_rest():
    """With all but one token the result is nearly that of all; without kept keys it is not."""
    inputs, model = drifting(2), program(None)[0]
    most = Regions(share=11 / 12)
    exact = rows(None, inputs)[0][1]
    near, reused = (rows(cache, inputs)[0][1] for cache in (most, StepCache(1)))
    errors = [np.abs(x - exact).mean() for x in (near, reused)]
    assert errors[0] < 0.3 * errors[1]
    _, carry = rows(most, inputs)
    place = np.setdiff1d(np.arange(12), carry.layers.places[0])
    old, new = (rows(most, inputs[:n])[1].layers.k for n in (1, 2))
    np.testing.assert_array_equal(old[:, :, place], new[:, :, place])
    assert np.abs(np.delete(old - new, place, 2)).max((0, 1, 3, 4)).min() > 1e-3
    assert model.cache is None


def test_rows_of_much_noise_and_rows_that_write_run_all_tokens():
    for fields in ({"t": 0.97}, {"write": True}):
        _, carry = rows(HALF, drifting(3), **fields)
        assert summary({"carry": carry})["computed"] == 3
    _, carry = rows(Regions(longest=1), drifting(5))
    assert summary({"carry": carry})["computed"] == 4  # all, half, all, half, all


def test_a_second_call_of_a_row_runs_the_same_tokens():
    model, apply = program(HALF)
    carry = model.start(*SHAPE[1:4], batch=2)
    for row, x in zip((0, 1, 1), drifting(3), strict=True):
        before, (_, carry) = carry, apply(parameters(), x, call(row), carry)
    np.testing.assert_array_equal(before.layers.places, carry.layers.places)
    np.testing.assert_array_equal(before.reused.signal.waited, carry.reused.signal.waited)


def test_the_focus_is_where_changes_move_and_no_token_starves():
    moves, speed = np.ones(100, bool), np.linspace(0, 1, 100) ** 4
    focus, ran = Focus(jnp.asarray(speed, jnp.float32), jnp.zeros(100)), np.zeros((26, 100), bool)
    step = jax.jit(lambda focus: _turn(focus, speed, moves))
    for row in range(26):
        focus, places = step(focus)
        ran[row, places] = True
    assert ran.any(0).all() and (ran.sum(1) == 50).all()
    assert ran[:, 80:].mean() > 0.9 > 0.3 > ran[:, :40].mean()
    still = np.arange(100) < 60
    places = np.asarray(focus.places(30, jnp.asarray(~still), 0.5))
    assert not still[places].any() and (np.diff(places) > 0).all()


def _turn(focus, speed, moves):
    places = focus.places(50, jnp.asarray(moves), 0.5)
    speed = jnp.asarray(speed, jnp.float32)[places]
    return focus.after(speed * (focus.waited[places] + 1), places), places


def in_sections():
    states = TextStates(
        jnp.zeros((2, 6, 8)), jnp.full((2, 2), 3), section=jnp.zeros((2, 3), int), sections=2
    )
    model, _ = program(HALF)
    carry = model.start(*SHAPE[1:4], batch=2)
    told = conditions().replace(text=states)
    return model.apply({"params": parameters()}, latents(), call(0), told, carry)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Regions(share=0.0), "a share of 0 of the tokens"),
        (lambda: KeptKeys(1.5), "a share of 1.5 of the tokens"),
        (lambda: Regions(impatience=0.0), "an impatience of 0; some tokens would never run"),
        (lambda: Regions(first=1), "regions with first 1 and order 0"),
        (lambda: Regions(order=1), "regions with first 0 and order 1"),
        (
            lambda: DIT.clone(cache=HALF, policy=Draft(0.5)).start(3, 4, 4),
            "regions with the attention Draft",
        ),
        (in_sections, "some tokens of a video of several prompts"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()
