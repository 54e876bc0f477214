"""Guidance by the past, on frames that belong to one normal distribution: all is known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Address,
    Call,
    ClassifierFree,
    Denoised,
    Euler,
    Heun,
    History,
    Stabilised,
    Unguided,
    WeightedHistory,
    freeze,
    guided,
    guided_carry,
    initial_noise,
    lag_matrix,
    linspace_levels,
    pad_rows,
    rectified_flow,
    sample,
    windowed,
)

FLOW, KEY, FRAMES, PLACES = rectified_flow(), jax.random.key(5), 4, 8
DISTANCE = np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES)))
COVARIANCE = jnp.asarray(0.8**DISTANCE, jnp.float32)  # of neighbouring frames, .8
MEANS = {"unconditional": 0.0, "prompt": 1.0}  # of every frame: what the prompt says
NOISE = initial_noise(KEY, jnp.arange(2), FRAMES, (PLACES,))
LEVELS = linspace_levels(5)
PICTURE = pad_rows(freeze(lag_matrix(LEVELS, FRAMES, lag=2), [0]), 12)


def exact(names):
    """What frames are, given all of them at their levels, and what each branch is told."""

    def denoise(x, call, carry):
        mean = jnp.repeat(
            jnp.array([MEANS[name.split()[0]] for name in names]), len(x) // len(names)
        )
        mean = jnp.broadcast_to(mean[:, None, None], x.shape)
        alpha, sigma = FLOW.alpha(call.t), FLOW.sigma(call.t)
        first = call.row.start
        window = x.shape[1]
        known = jax.lax.dynamic_slice(COVARIANCE, (first, first), (window, window))
        mixed = alpha[:, :, None] * known[None] * alpha[:, None] + jax.vmap(jnp.diag)(
            sigma**2 + 1e-6
        )
        off = jnp.linalg.solve(mixed, x - alpha[..., None] * mean)
        x0 = mean + jnp.einsum("fg,bg,bgp->bfp", known, alpha, off, precision="highest")
        eps = (x - alpha[..., None] * x0) / jnp.maximum(sigma, 1e-6)[..., None]
        return Denoised(x0, eps), carry

    return denoise


@functools.cache
def runner(rule, denoiser_of=exact):
    """A compiled run; `told` is a rule of the same structure with other numbers."""

    def run(told, matrix, x, address, key):
        carry = guided_carry(told, lambda names: None)
        denoise = guided(told, denoiser_of, FLOW)
        return sample(denoise, Euler(), FLOW, matrix, x, key, carry=carry, address=address).x

    return jax.jit(run)


def made(rule, matrix=PICTURE, x=NOISE, samples=(0, 1), key=KEY):
    address = Address(jnp.array(samples), jnp.arange(FRAMES))
    return np.asarray(runner(rule)(rule, matrix, x, address, key))


def by_formula(x, t, weights):
    """The same sum without views: frame 0 is known, or not at all."""
    past, prompt = weights
    call = Call.at(t)
    known = [exact((name,))(x, call, None)[0].x0 for name in ("unconditional", "prompt")]
    blind = exact(("unconditional",))(x.at[:, 0].set(1e6), Call.at(t.at[:, 0].set(1.0)), None)
    # At level 1 the value of a frame says nothing: alpha is 0 there.
    return (1 - past) * blind[0].x0 + (past - prompt) * known[0] + prompt * known[1]


@pytest.mark.parametrize("scales", [(2.0, 1.5), (3.0, 3.0), (1.0, 2.0)], ids=str)
def test_a_step_is_the_sum_of_what_is_said_with_and_without_the_past(scales):
    prompt, past = scales
    matrix = freeze(lag_matrix(LEVELS, FRAMES), [0])
    one = matrix.__class__(
        matrix.levels, matrix.index[:2], matrix.start[:1], matrix.write[:1], FRAMES
    )
    x = NOISE.at[:, 0].set(2.0)
    got = made(History(prompt, past).settled(), one, x)
    t = jnp.broadcast_to(jnp.array([0.0, 1.0, 1.0, 1.0]), (2, FRAMES))
    data = by_formula(x, t, (past, prompt))
    expected = x + (LEVELS[1] - 1.0) * (x - data)  # one step of Euler from pure noise
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[:, 0], x[:, 0])


def test_more_weight_of_the_past_brings_frames_nearer_to_it():
    """The picture is far from what the prompt says; with the scales of the prompt fixed."""
    x = NOISE.at[:, 0].set(-3.0)
    ends = [made(History(1.0, past), x=x)[:, 1].mean() for past in (0.5, 1.5, 2.5)]
    assert ends[0] > ends[1] > ends[2]


def test_without_a_past_it_is_guidance_by_the_prompt():
    matrix = pad_rows(lag_matrix(LEVELS, FRAMES), 12)
    got, expected = made(History(3.0, 2.0), matrix), made(ClassifierFree(3.0), matrix)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert History(3.0, 1.0).settled() == ClassifierFree(3.0)
    assert History(1.0, 1.0).settled() == Unguided()
    assert len(History(3.0, 3.0).settled().branches) == 2


def test_more_than_pure_noise_is_pure_noise():
    x = NOISE.at[:, 0].set(-3.0)
    np.testing.assert_array_equal(made(History(2.0, 3.0, 7.0), x=x), made(History(2.0, 3.0), x=x))


def views(x, call, carry, names):
    """A network that keeps what each branch is shown in each row."""
    seen, told = carry
    count = len(names)
    shown = jnp.stack(jnp.split(x, count)), jnp.stack(jnp.split(call.t, count))
    at = seen.at[call.row.index].set(shown[0]), told.at[call.row.index].set(shown[1])
    return Denoised(jnp.zeros_like(x), x), at


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=str)
def test_only_what_stands_below_the_level_is_veiled_anew_in_every_row(solver):
    """Given and finished frames, not those in work, at either evaluation, nor those that wait."""
    rule = WeightedHistory(("unconditional", "prompt"), (-1.0, 2.0), (0.4, 0.0))
    rows = PICTURE.num_rows
    start = (jnp.zeros((rows, 2, 2, FRAMES, PLACES)), jnp.full((rows, 2, 2, FRAMES), -1.0))
    denoise = guided(rule, lambda names: functools.partial(views, names=names), FLOW)
    state = sample(denoise, solver, FLOW, PICTURE, NOISE, KEY, carry=start)
    seen, told = (np.asarray(part) for part in state.carry)
    index = np.asarray(PICTURE.index)
    moves = index[1:] != index[:-1]
    for row in np.flatnonzero(moves.any(1)):
        veiled = ~moves[row] & (np.asarray(LEVELS)[index[row]] < 0.4)
        assert veiled[0]
        np.testing.assert_array_equal(told[row, 0, :, veiled], np.float32(0.4))
        np.testing.assert_array_equal(told[row, 0][:, ~veiled], told[row, 1][:, ~veiled])
        np.testing.assert_array_equal(seen[row, 0][:, ~veiled], seen[row, 1][:, ~veiled])
        np.testing.assert_array_equal(told[row, 1][:, veiled], 0.0)
        noise = (seen[row, 0][:, veiled] - 0.6 * seen[row, 1][:, veiled]) / 0.4
        assert 0.6 < noise.std() < 1.5
    called = np.flatnonzero(moves.any(1))
    firsts = seen[called, 0, 0, 0]
    assert len(np.unique(firsts[:, 0])) == len(called)  # new in every row


def test_the_noise_of_the_past_is_of_the_sample_the_frame_and_the_key():
    x = NOISE.at[:, 0].set(-3.0)
    rule = History(2.0, 3.0, 0.7)
    both = made(rule, x=x)
    np.testing.assert_array_equal(made(rule, x=x[1:], samples=(1,)), both[1:])
    np.testing.assert_array_equal(made(rule, x=x[::-1], samples=(1, 0)), both[::-1])
    assert not np.array_equal(made(rule, x=x[1:], samples=(0,)), both[1:])
    assert not np.array_equal(made(rule, x=x, key=jax.random.key(6)), both)
    later = pad_rows(freeze(lag_matrix(LEVELS, FRAMES, lag=5), [0, 1]), 20)
    seen = windowed(later, context=2)
    assert seen.window < FRAMES
    whole = runner(rule, denoiser_of=alone)
    address = Address(jnp.arange(2), jnp.arange(FRAMES))
    np.testing.assert_array_equal(
        whole(rule, seen, x, address, KEY), whole(rule, later, x, address, KEY)
    )


def alone(names):
    """Frames that know the two before them alone, so that a window of three says the same."""

    def denoise(x, call, carry):
        past = [jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, : x.shape[1]] for back in (1, 2)]
        x0 = 0.3 * (past[0] + past[1])
        return Denoised(x0, x - x0), carry

    return denoise


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_one_by_one_is_the_same_as_together(execution):
    x = NOISE.at[:, 0].set(-3.0)
    expected = made(History(2.0, 3.0, 0.7), x=x)
    rule = History(2.0, 3.0, 0.7, execution=execution)
    np.testing.assert_allclose(made(rule, x=x), expected, rtol=1e-5, atol=1e-5)


def test_frames_that_are_told_a_small_level_are_veiled_all_the_same():
    """`Stabilised` stands around guidance: what is finished is no longer told 0 in it."""
    rule = WeightedHistory(("unconditional", "prompt"), (-1.0, 2.0), (0.4, 0.0))
    start = (jnp.zeros((12, 2, 2, FRAMES, PLACES)), jnp.full((12, 2, 2, FRAMES), -1.0))
    inner = guided(rule, lambda names: functools.partial(views, names=names), FLOW)
    denoise = Stabilised(0.02).around(inner, FLOW)
    state = sample(denoise, Euler(), FLOW, PICTURE, NOISE, KEY, carry=start)
    told = np.asarray(state.carry[1])
    np.testing.assert_allclose(told[2, :, 0, 0], [0.4, 0.02])


def test_fractional_guidance_keeps_what_all_of_the_past_says():
    """At a weight of 1 it is the network itself; beyond, what a blurred past changes goes on."""
    names = ("unconditional without history", "prompt without much", "prompt")
    x = NOISE.at[:, 0].set(-3.0)

    def fractional(weight):
        return WeightedHistory(names, (1.0 - weight, weight - 1.0, 1.0), (1.0, 0.5, 0.0))

    np.testing.assert_allclose(
        made(fractional(1.0), x=x), made(Unguided(), x=x), rtol=1e-4, atol=1e-4
    )
    assert np.abs(made(fractional(2.0), x=x) - made(Unguided(), x=x))[:, 1:].max() > 0.1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="1 levels of the past for 2 branches"):
        WeightedHistory(("unconditional", "prompt"), (-1.0, 2.0), (1.0,))
    with pytest.raises(ConfigError, match="weights sum to 3"):
        WeightedHistory(("unconditional", "prompt"), (1.0, 2.0), (1.0, 0.0))
    for make in (
        lambda: History(2.0, level=-0.1),
        lambda: WeightedHistory(("unconditional", "prompt"), (-1.0, 2.0), (float("nan"), 0.0)),
    ):
        with pytest.raises(ConfigError, match="sees the past at the level"):
            make()
    denoise = guided(History(2.0), exact, FLOW)
    with pytest.raises(ConfigError, match="this call of the network is not one of a run"):
        denoise(NOISE, Call.at(jnp.ones((2, FRAMES))), None)
