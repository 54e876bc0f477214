"""What holds for every solver of the registry: frozen frames, independence of the other frames."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from jvdm.errors import ConfigError
from jvdm.samplers import (
    DDIM,
    DDPM,
    Consistency,
    Denoised,
    DPMSolverPP2M,
    Solver,
    UniPC,
    advance,
    freeze,
    from_index,
    lag_matrix,
    linspace_levels,
    pad_rows,
    rectified_flow,
    sample,
    shift_levels,
    solver_named,
    start,
    step_levels,
    synchronous,
    validate,
    vp_cosine,
    vp_linear,
)
from jvdm.samplers.process import expand
from jvdm.samplers.solvers import EDM, SOLVERS
from tests.samplers.problems import MEANS, SHARES, STDS, mixture_denoiser, noise_like

FLOW, COSINE, KEY = rectified_flow(), vp_cosine(), jax.random.key(3)
NOISE, ROWS = noise_like((2, 4, 8)), 24
LEVELS = shift_levels(linspace_levels(6), 3.0)
LATER = (
    "ddim",
    "ddpm",
    "lcm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "unipc3",
    "edm_heun",
)
each_solver = pytest.mark.parametrize("name", LATER)


@functools.cache
def runner(name, process=FLOW, broken=False):
    def denoise(x, call, carry):
        denoised, carry = mixture_denoiser(process)(x, call, carry)
        bad = expand(jnp.broadcast_to(jnp.arange(4) == 1, call.t.shape), x) & broken
        return jax.tree.map(lambda value: jnp.where(bad, jnp.nan, value), denoised), carry

    solver = solver_named(name)
    return jax.jit(lambda matrix: sample(denoise, solver, process, matrix, NOISE, KEY).x)


@each_solver
def test_no_other_frame_matters(name):
    matrices = [pad_rows(lag_matrix(LEVELS, 4, lag), ROWS) for lag in (0, 1, 6)]
    together, wave, one_by_one = (runner(name)(matrix) for matrix in matrices)
    assert jnp.isfinite(together).all()
    np.testing.assert_array_equal(together, wave)
    np.testing.assert_array_equal(together, one_by_one)


@st.composite
def monotone(draw):
    """Level indices of any run: each frame moves when it likes, or never."""
    moves = st.lists(st.integers(0, ROWS - 1), min_size=6, max_size=6, unique=True)
    moves = moves.map(sorted)  # the rows in which a frame takes its six steps
    columns = [draw(moves) for _ in range(4)]
    index = np.stack([np.searchsorted(rows, np.arange(ROWS + 1)) for rows in columns], axis=1)
    for frame in draw(st.sets(st.integers(0, 3))):
        index[:, frame] = draw(st.sampled_from([0, 2, 6]))
    return index


@pytest.mark.parametrize("name", SOLVERS)
@hypothesis.settings(max_examples=12)
@hypothesis.given(index=monotone())
def test_any_monotone_matrix_gives_a_frame_its_own_bits_and_freezes_the_others(name, index):
    matrix = from_index(LEVELS, index)
    assert validate(matrix) is matrix
    together = runner(name)(pad_rows(synchronous(LEVELS, 4), ROWS))
    frozen = (index[0] == index[-1])[None, :, None]
    np.testing.assert_array_equal(runner(name)(matrix), np.where(frozen, NOISE, together))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("level", [0, 6], ids=["noise", "clean"])
def test_frozen_frames_keep_their_bits_where_the_network_fails(name, level):
    matrix = pad_rows(lag_matrix(LEVELS, 4, 1), ROWS)
    got = runner(name, broken=True)(freeze(matrix, [1], level))
    np.testing.assert_array_equal(got[:, 1], NOISE[:, 1])
    # The same program with the failing frame moving: its values reach no other frame. (Another
    # program, with a network that does not fail, may be fused differently in the last bit.)
    failed = runner(name, broken=True)(matrix)
    assert jnp.isnan(failed[:, 1]).all() and jnp.isfinite(got[:, [0, 2, 3]]).all()
    np.testing.assert_array_equal(got[:, [0, 2, 3]], failed[:, [0, 2, 3]])


@pytest.mark.parametrize("name", SOLVERS)
def test_singular_ends_of_the_cosine_are_reached(name):
    got = runner(name, COSINE)(synchronous(LEVELS, 4))
    assert jnp.isfinite(got).all() and 0.3 < float(jnp.std(got)) < 1.5


def normal_denoiser(std):
    def denoise(x, call, carry):
        alpha, sigma = expand(FLOW.alpha(call.t), x), expand(FLOW.sigma(call.t), x)
        variance = (alpha * std) ** 2 + sigma**2
        x0, eps = alpha * std**2 / variance * x, sigma / variance * x
        return Denoised(x0, eps), carry

    return denoise


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_spreads_normal_data_as_its_closed_form_says(eta):
    std, x, levels = 0.6, noise_like((1, 1, 20_000)), linspace_levels(5)
    run = jax.jit(
        lambda x: sample(normal_denoiser(std), DDIM(eta), FLOW, synchronous(levels, 1), x, KEY).x
    )
    variance, grid = 1.0, np.asarray(levels, np.float64)
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        a, s, total = 1 - t, t, ((1 - t) * std) ** 2 + t**2
        fresh = eta * t_next * np.sqrt(1 - (t_next * a / ((1 - t_next) * s)) ** 2)
        scale = (1 - t_next) * a * std**2 / total + np.sqrt(t_next**2 - fresh**2) * s / total
        variance = scale**2 * variance + fresh**2
    # The variance of 20,000 draws has a relative standard error of 1 %.
    np.testing.assert_allclose(float(jnp.var(run(x))), variance, rtol=0.04)


@pytest.mark.parametrize(
    "solver",
    [solver_named("ddpm"), solver_named("dpmpp_2m_sde"), EDM(s_churn=60.0)],
    ids=["ddpm", "sde", "churn"],
)
def test_stochastic_solvers_reach_the_moments_of_the_data(solver):
    std, x = 0.6, noise_like((1, 1, 20_000))
    matrix = synchronous(linspace_levels(300), 1)
    denoise = normal_denoiser(std)
    got = jax.jit(lambda x: sample(denoise, solver, FLOW, matrix, x, KEY).x)(x)
    assert abs(float(jnp.mean(got))) < 0.02
    # 0.5 % of sampling error and 1 % of 300 steps of first order (3.2 % at 100 steps).
    np.testing.assert_allclose(float(jnp.std(got)), std, rtol=0.03)


@pytest.mark.parametrize(
    "solver",
    [solver_named("ddpm"), DDPM("large"), solver_named("dpmpp_2m_sde"), DDIM(0.5)],
    ids=["ddpm", "ddpm, large", "sde", "ddim"],
)
@pytest.mark.parametrize("process", [FLOW, COSINE], ids=["flow", "cosine"])
def test_stochastic_solvers_reach_the_shares_of_a_mixture(solver, process):
    """Mean and deviation, and how many numbers lie below the places where humps meet."""
    x, matrix = noise_like((1, 1, 50_000)), synchronous(linspace_levels(200), 1)
    denoise = mixture_denoiser(process)
    got = jax.jit(lambda x: sample(denoise, solver, process, matrix, x, KEY).x)(x)
    mean = float(SHARES @ MEANS)
    std = float(np.sqrt(SHARES @ (STDS**2 + MEANS**2) - mean**2))
    # The mean of 50,000 numbers is off by .004, and 200 steps by about 1 %.
    np.testing.assert_allclose(float(jnp.mean(got)), mean, atol=0.02)
    np.testing.assert_allclose(float(jnp.std(got)), std, rtol=0.03)
    for place in (-0.5, 0.3, 0.9):
        below = float(SHARES @ ndtr((place - MEANS) / STDS))
        np.testing.assert_allclose(float(jnp.mean(got < place)), below, atol=0.02)


@pytest.mark.parametrize("solver", [DDPM("small"), DDPM("large"), Consistency()], ids=str)
def test_solvers_draw_the_variance_that_they_say(solver):
    zeros = jnp.zeros((1, 1, 20_000))
    denoise = lambda x, call, carry: (Denoised(zeros, zeros), carry)  # noqa: E731
    matrix = synchronous(jnp.array([0.5, 0.25, 0.0]), 1)
    state = start(solver, zeros, KEY)
    got = advance(denoise, solver, FLOW, matrix, state, 0, 1).x
    # From t = 0.5 to 0.25, and the posterior has (sigma_next / sigma)^2 of it.
    forward = 0.25 - (2 / 3) ** 2 / 16
    expected = {
        DDPM("small"): forward * 0.25,
        DDPM("large"): forward,
        Consistency(): 0.25**2,  # all noise of the next level is fresh
    }[solver]
    # The variance of 20,000 draws has a relative standard error of 1 %.
    np.testing.assert_allclose(float(jnp.var(got)), expected, rtol=0.04)


def test_a_boundary_says_x_itself_where_there_is_no_noise_and_the_network_far_from_it():
    """A network that says 1 of everything, on a table of 1000 steps."""
    ones = jnp.ones_like(NOISE)
    denoise = lambda x, call, carry: (Denoised(ones, ones), carry)  # noqa: E731
    table, solver = vp_linear(), Consistency(scaling=10.0)

    def last(step):
        matrix = synchronous(step_levels([step]), 4)
        return sample(denoise, solver, table, matrix, NOISE, KEY).x

    np.testing.assert_allclose(last(0), NOISE, rtol=1e-6)
    np.testing.assert_allclose(last(999), ones, atol=3e-4)
    skip, out = 0.25 / (30.0**2 + 0.25), 30 / (30.0**2 + 0.25) ** 0.5
    np.testing.assert_allclose(last(3), skip * NOISE + out, rtol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_values(name):
    solver = solver_named(name)
    assert isinstance(solver, Solver)
    assert hash(solver) == hash(type(solver)(**vars(solver)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: solver_named("plms"), "none of that name.*euler, heun, ddim"),
        (lambda: solver_named("unipc"), "did you mean 'unipc.'.*euler, heun, ddim"),
        (lambda: solver_named("dpm++_2m"), "did you mean 'dpmpp_2m'.*euler, heun, ddim"),
        (lambda: DDIM(1.5), "eta = 1.5"),
        (lambda: UniPC(4), "order 4"),
        (lambda: DPMSolverPP2M(0.5, "exact"), "rule exact"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
