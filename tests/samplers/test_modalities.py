"""Video and audio in one run: a joint mixture of normal distributions, whose posterior is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers import (
    EDM,
    Blend,
    Call,
    ClassifierFree,
    Denoised,
    Euler,
    FlowMap,
    GradGuide,
    Heun,
    Projected,
    UniPC,
    Weighted,
    advance,
    freeze,
    guided,
    guided_carry,
    guided_carry_together,
    guided_together,
    hooked,
    initial_noise,
    lag_matrix,
    linspace_levels,
    noise_of,
    pad_rows,
    rectified_flow,
    sample,
    shift_levels,
    start,
    synchronous,
    vp_cosine,
    waves_in_seconds,
    windowed,
)
from tests.samplers.problems import NoisyAverage, mixture_denoiser, noise_like

FLOW, COSINE, KEY = rectified_flow(), vp_cosine(), jax.random.key(4)
SECONDS, AUDIO = 3, 2  # one latent frame of video per second, and two of audio
SHIFT = {"video": 12.0, "audio": 3.0}
# Per second one number of video and two of audio, together from one of two components.
MEANS = {"video": np.array([1.0, -0.6]), "audio": np.array([-0.7, 0.9])}
SHARES, STD = np.array([0.4, 0.6]), 0.35


def posterior(x, t):
    """The expected data of each modality, per second `[B, S, n]`, given all that is seen of it."""
    logs = jnp.log(jnp.asarray(SHARES))[None, None]
    for name, values in MEANS.items():
        mean = jnp.asarray(values)[None, None, None]
        alpha = 1 - t[name][..., None]
        variance = (alpha * STD) ** 2 + t[name][..., None] ** 2
        offset = x[name][..., None] - alpha * mean
        logs = logs + (-0.5 * offset**2 / variance - 0.5 * jnp.log(variance)).sum(axis=-2)
    responsible = jax.nn.softmax(logs, axis=-1)[..., None, :]
    x0 = {}
    for name, values in MEANS.items():
        mean = jnp.asarray(values)[None, None, None]
        alpha = 1 - t[name][..., None]
        variance = (alpha * STD) ** 2 + t[name][..., None] ** 2
        of_one = mean + alpha * STD**2 / variance * (x[name][..., None] - alpha * mean)
        x0[name] = (responsible * of_one).sum(axis=-1)
    return x0


def denoise(x, call, carry):
    """The best denoiser; latents of a modality are `[B, frames, 1]`."""
    by_second = {name: value.reshape(len(value), SECONDS, -1) for name, value in x.items()}
    t = {name: call[name].t.reshape(by_second[name].shape) for name in x}
    x0 = {name: value.reshape(x[name].shape) for name, value in posterior(by_second, t).items()}
    eps = {
        name: (x[name] - (1 - call[name].t[..., None]) * x0[name])
        / jnp.where(call[name].t == 0, 1.0, call[name].t)[..., None]
        for name in x
    }
    return {name: Denoised(x0[name], eps[name]) for name in x}, carry


def matrices(steps, lag=0):
    levels = {name: shift_levels(linspace_levels(steps), shift) for name, shift in SHIFT.items()}
    seconds = {"video": np.arange(float(SECONDS)), "audio": np.arange(SECONDS * AUDIO) / AUDIO}
    return waves_in_seconds(levels, seconds, lag)


def noise(batch):
    shapes = {"video": (SECONDS, 1), "audio": (SECONDS * AUDIO, 1)}
    return noise_of(KEY, jnp.arange(batch), shapes)


@functools.cache
def runner(solver):
    return jax.jit(lambda matrix, x: sample(denoise, solver, FLOW, matrix, x, KEY).x)


def exact_end(x):
    """Where the flow of both takes one clip, by an integrator of its own."""
    sizes = {"video": SECONDS, "audio": SECONDS * AUDIO}
    said = jax.jit(posterior)

    def slope(u, packed):
        parts = dict(zip(sizes, np.split(packed, [SECONDS]), strict=True))
        level = {name: s * u / (1 + (s - 1) * u) for name, s in SHIFT.items()}
        rate = {name: s / (1 + (s - 1) * u) ** 2 for name, s in SHIFT.items()}
        seen = {name: part.reshape(1, SECONDS, -1) for name, part in parts.items()}
        x0 = said(seen, {name: jnp.full(seen[name].shape, level[name]) for name in seen})
        moved = [
            rate[name] * (parts[name] - np.ravel(x0[name])) / level[name] for name in sizes
        ]  # eps - x0 = (x - x0) / t
        return np.concatenate(moved)

    packed = np.concatenate([np.ravel(x[name]) for name in sizes])
    end = solve_ivp(slope, (1.0, 1e-6), packed, rtol=1e-8, atol=1e-10).y[:, -1]
    return dict(zip(sizes, np.split(end, [SECONDS]), strict=True))


def test_both_reach_the_exact_end_at_the_order_of_the_solver():
    with jax.enable_x64(True):
        x = {name: jnp.asarray(value, jnp.float64) for name, value in noise(1).items()}
        exact, found = exact_end(x), []
        for stride in (2, 1):  # every other level of one grid, then all: one program
            rows = {
                name: dataclasses.replace(one, index=jnp.minimum(stride * one.index, 256))
                for name, one in matrices(256).items()
            }
            end = runner(Heun())(rows, x)
            found.append(max(np.abs(np.ravel(end[name]) - exact[name]).max() for name in x))
    # Of second order, with a last step of first order.
    assert found[0] > 3.3 * found[1] and found[1] < 0.01, found


def test_samples_of_both_belong_together_and_follow_what_is_given():
    batch, rows = 2000, matrices(24)
    end = runner(Heun())(rows, noise(batch))
    video, audio = (np.asarray(end[n]).reshape(batch, SECONDS, -1) for n in ("video", "audio"))
    mean = {name: SHARES @ value for name, value in MEANS.items()}
    both = (SHARES * MEANS["video"] * MEANS["audio"]).sum() - mean["video"] * mean["audio"]
    found = np.mean((video - mean["video"]) * (audio - mean["audio"]))
    np.testing.assert_allclose(found, both, atol=0.02)
    np.testing.assert_allclose(video.mean(), mean["video"], atol=0.03)
    # The same with clean audio that is given: it stays, and the video is that of its component.
    given = {**noise(batch), "audio": jnp.full((batch, SECONDS * AUDIO, 1), 0.1)}
    frozen = {**rows, "audio": freeze(rows["audio"], range(SECONDS * AUDIO))}
    end = runner(Heun())(frozen, given)
    np.testing.assert_array_equal(end["audio"], given["audio"])
    likely = SHARES * np.exp(-0.5 * ((0.1 - MEANS["audio"]) / STD) ** 2 * AUDIO)
    np.testing.assert_allclose(
        np.mean(end["video"]), likely @ MEANS["video"] / likely.sum(), atol=0.03
    )


PROCESS = {"video": FLOW, "audio": COSINE}
ALONE = {name: mixture_denoiser(process) for name, process in PROCESS.items()}
LEVELS = linspace_levels(4)
ROWS = {
    "video": windowed(pad_rows(lag_matrix(LEVELS, 3, lag=4), 14)),
    "audio": freeze(pad_rows(lag_matrix(shift_levels(LEVELS, 3.0), 5, lag=2), 14), (1,)),
}
X = {"video": noise_like((2, 3, 4)), "audio": noise_like((2, 5, 7), 1)}


def energy(x0, target):
    return 0.5 * jnp.sum((x0 - target) ** 2)


KEEP, DOWN = Blend(0 * X["video"], 0.5), GradGuide(energy, 0.3, 0.5)


def apart(x, call, carry):
    """A network that sees both and mixes nothing; it counts its calls."""
    return {name: ALONE[name](x[name], call[name], None)[0] for name in x}, carry + 1


@pytest.mark.parametrize(
    ("solver", "hooks"),
    [
        ({"video": UniPC(2), "audio": FlowMap(0.5)}, {"video": (KEEP,), "audio": ()}),
        ({"video": Heun(), "audio": EDM(s_churn=2.0)}, {"video": (), "audio": (DOWN, DOWN)}),
    ],
    ids=["history", "two evaluations"],
)
def test_modalities_that_do_not_mix_have_the_bits_of_runs_of_their_own(solver, hooks):
    both = hooked(solver, hooks)
    together = jax.jit(lambda x: sample(apart, both, PROCESS, ROWS, x, KEY, carry=jnp.array(0)))
    end = together(X)
    for name in X:
        alone = hooked(solver[name], hooks[name])
        run = functools.partial(sample, ALONE[name], alone, PROCESS[name], ROWS[name])
        alone = jax.jit(lambda x, run=run, name=name: run(x, named(KEY, name)))(X[name])
        np.testing.assert_array_equal(end.x[name], alone.x)
        np.testing.assert_array_equal(end.updates[name], alone.updates)
    np.testing.assert_array_equal(end.x["audio"][:, 1], X["audio"][:, 1])
    assert end.carry > 0


@pytest.mark.parametrize("solver", [Euler(), Heun(), UniPC(2), NoisyAverage()], ids=str)
def test_one_modality_is_the_program_of_an_array(solver):
    """Names are structure: there is no operation for them, and the loop costs the same."""
    matrix, one = ROWS["video"], mixture_denoiser(FLOW)
    state = start(solver, X["video"], KEY)
    program = functools.partial(advance, one, solver, FLOW, matrix, row=0, num_rows=14)

    def named_one(x, call, carry):
        said, carry = one(x["video"], call["video"], carry)
        return {"video": said}, carry

    by_name = functools.partial(
        advance, named_one, solver, FLOW, {"video": matrix}, row=0, num_rows=14
    )
    named_state = start(solver, {"video": X["video"]}, KEY)
    if isinstance(solver, NoisyAverage):  # it is of no kind whose questions can be put together
        with pytest.raises(ConfigError, match="solvers .* of video"):
            jax.eval_shape(lambda state: by_name(state=state), named_state)
        return
    expected, got = (
        str(jax.make_jaxpr(lambda state, run=run: run(state=state))(state))
        for run, state in ((program, state), (by_name, named_state))
    )
    assert got == expected


def test_a_rule_of_guidance_for_each():
    rules = {
        "video": ClassifierFree(3.0),
        "audio": Weighted(("prompt", "unconditional", "silent"), (2.0, 0.5, -1.5)),
    }
    scale = {"unconditional": 1.0, "prompt": 2.0, "silent": -3.0}

    def of_one(names):
        def say(x, call, carry):
            parts = zip(jnp.split(x, len(names)), names, strict=True)
            x0 = jnp.concatenate([scale[name] * part for part, name in parts])
            return Denoised(x0, x0 + call.t[..., None]), carry

        return say

    def of_both(names):
        assert names == ("prompt", "unconditional", "silent")  # those of audio first
        say = of_one(names)

        def say_both(x, call, carry):
            return {name: say(x[name], call[name], None)[0] for name in x}, carry + 1

        return say_both

    call = {name: Call.at(jnp.full(x.shape[:2], 0.4)) for name, x in X.items()}
    said, carry = guided_together(rules, of_both, FLOW)(X, call, 0)
    assert carry == 1
    for name, rule in rules.items():
        alone, _ = guided(rule, of_one, FLOW)(X[name], call[name], None)
        for got, expected in zip(said[name], alone, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_modality_remembers_its_own_steps_as_it_does_alone():
    rules = {"video": Projected(3.0, momentum=-0.5), "audio": ClassifierFree(2.0)}
    scale = {"unconditional": 0.5, "prompt": 1.0}

    def of_one(name, branches):
        def say(x, call, carry):
            said, carry = ALONE[name](x, call, carry)
            parts = zip(jnp.split(said.x0, len(branches)), branches, strict=True)
            return said._replace(x0=jnp.concatenate([scale[b] * x0 for x0, b in parts])), carry

        return say

    def of_both(branches):
        def say(x, call, carry):
            return {n: of_one(n, branches)(x[n], call[n], None)[0] for n in x}, carry + 1

        return say

    @jax.jit
    def together(x):
        denoise = guided_together(rules, of_both, PROCESS)
        carry = guided_carry_together(rules, jnp.array(0), {name: x[name].shape for name in x})
        return sample(denoise, Euler(), PROCESS, ROWS, x, KEY, carry=carry)

    @jax.jit
    def alone(x):
        rule, process = rules["video"], PROCESS["video"]
        denoise = guided(rule, functools.partial(of_one, "video"), process)
        carry = guided_carry(rule, lambda names: None, x.shape)
        return sample(denoise, Euler(), process, ROWS["video"], x, KEY, carry=carry)

    end, expected = together(X), alone(X["video"])
    memory, calls = end.carry
    assert memory["audio"] is None and calls > 0
    np.testing.assert_allclose(end.x["video"], expected.x, atol=1e-5)
    np.testing.assert_allclose(memory["video"].values, expected.carry[0].values, atol=1e-5)
    assert np.abs(memory["video"].values).max() > 0.1


def test_frames_of_one_second_go_together():
    rows = matrices(4, lag=2)
    assert rows["video"].num_rows == rows["audio"].num_rows == 4 + 2 * (SECONDS - 1)
    for frame in range(SECONDS * AUDIO):
        of_second = rows["video"].index[:, frame // AUDIO]
        np.testing.assert_array_equal(rows["audio"].index[:, frame], of_second)
    by_frame = lag_matrix(rows["video"].levels, SECONDS, lag=2)
    np.testing.assert_array_equal(rows["video"].index, by_frame.index)


def test_noise_of_a_modality_is_of_its_name_and_its_frames():
    both, more = noise(2), noise_of(KEY, jnp.arange(3), {"video": (9, 1)})
    np.testing.assert_array_equal(both["video"], more["video"][:2, :SECONDS])
    alone = initial_noise(named(KEY, "audio"), jnp.arange(2), SECONDS * AUDIO, (1,))
    np.testing.assert_array_equal(both["audio"], alone)


def test_what_does_not_fit_together_is_refused():
    run = functools.partial(sample, apart, carry=jnp.array(0))
    short = {**ROWS, "audio": synchronous(LEVELS, 5)}
    with pytest.raises(ConfigError, match=r"video with 14 rows, audio with 4 rows.*pad_rows"):
        run(Euler(), PROCESS, short, X, KEY)
    with pytest.raises(ConfigError, match="sound, video were given"):
        run({"video": Euler(), "sound": Euler()}, PROCESS, ROWS, X, KEY)
    with pytest.raises(ConfigError, match="once or twice"):
        run({"video": Euler(), "audio": Heun()}, PROCESS, ROWS, X, KEY)
    with pytest.raises(ConfigError, match="video with 2 steps, audio with 3 steps"):
        levels = {"video": linspace_levels(2), "audio": linspace_levels(3)}
        waves_in_seconds(levels, {"video": np.zeros(1), "audio": np.zeros(1)})
    with pytest.raises(ConfigError, match="lag -1"):
        waves_in_seconds({"video": LEVELS}, {"video": np.zeros(1)}, lag=-1)
    with pytest.raises(ConfigError, match="guidance of audio evaluates branches one by one"):
        rules = {"video": ClassifierFree(2.0), "audio": ClassifierFree(2.0, execution="sequential")}
        guided_together(rules, lambda names: apart, FLOW)
