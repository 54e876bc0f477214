"""Noise schedules of published models: tables, continuous forms, and their grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    DDIM,
    Call,
    biased,
    corrupt,
    edm,
    explicit_levels,
    exponential_levels,
    karras_levels,
    linear_quadratic_levels,
    make_denoiser,
    rectified_flow,
    sample,
    solver_named,
    spaced_steps,
    step_levels,
    synchronous,
    trig_flow,
    uniform_lambda_levels,
    vp_continuous,
    vp_cosine,
    vp_cosine_table,
    vp_linear,
    vp_scaled_linear,
    zero_terminal_snr,
)
from jvdm.samplers.process import from_x0_eps, to_x0_eps
from tests.samplers.problems import noise_like

TABLES = {
    "linear": vp_linear(),
    "scaled": vp_scaled_linear(),
    "cosine table": vp_cosine_table(),
    "zero snr": zero_terminal_snr(vp_scaled_linear()),
}
VARIANCE_PRESERVING = {**TABLES, "continuous": vp_continuous(), "trig": trig_flow()}
ALL = {**VARIANCE_PRESERVING, "edm": edm(), "flow": rectified_flow()}
ALL["biased"] = biased(vp_scaled_linear())
KINDS = ("velocity", "x0", "eps", "v", "score", "edm")

each = pytest.mark.parametrize("process", ALL.values(), ids=ALL.keys())
each_vp = pytest.mark.parametrize(
    "process", VARIANCE_PRESERVING.values(), ids=VARIANCE_PRESERVING.keys()
)
# Between the steps of the tables, where derivatives exist, and not near 0 or 1.
INSIDE = (jnp.arange(30.0, 980.0, 19.0) + 0.37) / 1000


def test_equal_recipes_are_equal_processes():
    assert vp_linear() == vp_linear(1e-4) != vp_linear(2e-4)
    assert hash(vp_scaled_linear()) == hash(vp_scaled_linear())
    assert edm() == edm(0.5) != edm(1.0)
    assert zero_terminal_snr(vp_linear()) != vp_linear()


@each_vp
def test_variance_is_preserved_and_noise_only_grows(process):
    t = jnp.linspace(0.0, 1.0, 3001)
    alpha, sigma = process.alpha(t), process.sigma(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=2e-6)
    assert (jnp.diff(process.lam(t[1:-1])) < 0).all()
    assert (alpha[0], sigma[0]) == (1.0, 0.0)


@each
def test_derivatives_are_the_derivatives(process):
    with jax.enable_x64(True):
        t, h = jnp.asarray(INSIDE, jnp.float64), 1e-6
        pairs = ((process.alpha, process.d_alpha), (process.sigma, process.d_sigma))
        for function, derivative in pairs:
            expected = (function(t + h) - function(t - h)) / (2 * h)
            np.testing.assert_allclose(derivative(t), expected, rtol=1e-5, atol=1e-7)


@each
def test_lambda_is_invertible(process):
    t = jnp.concatenate([INSIDE, jnp.array([0.0004, 0.9996])])
    lam = process.lam(t)
    np.testing.assert_allclose(lam, jnp.log(process.alpha(t) / process.sigma(t)), atol=2e-4)
    np.testing.assert_allclose(process.inv_lam(lam), t, atol=3e-5)


@pytest.mark.parametrize(("name", "kind"), [("linear", 0), ("scaled", 1), ("cosine table", 2)])
def test_tables_are_cumulative_products_at_their_steps(name, kind):
    grid = np.arange(1000)
    betas = (
        1e-4 + (0.02 - 1e-4) * grid / 999,
        (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * grid / 999) ** 2,
        None,
    )[kind]
    if betas is None:
        bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    t = (jnp.arange(1000.0) + 1) / 1000
    bars = np.cumprod(1 - betas)
    np.testing.assert_allclose(TABLES[name].alpha(t), np.sqrt(bars), rtol=2e-5, atol=3e-7)
    np.testing.assert_allclose(TABLES[name].sigma(t), np.sqrt(1 - bars), rtol=2e-5)
    np.testing.assert_allclose(TABLES[name].model_time(t), grid, atol=1e-4)


def test_a_shift_divides_the_signal_to_noise_ratio_of_every_step():
    t = (jnp.arange(1000.0) + 1) / 1000
    gained = vp_scaled_linear().lam(t) - vp_scaled_linear(snr_shift=3.0).lam(t)
    np.testing.assert_allclose(gained, 0.5 * np.log(3.0), atol=1e-4)


def test_zero_terminal_snr_ends_in_noise_alone_and_keeps_the_first_step():
    plain, process = vp_scaled_linear(), TABLES["zero snr"]
    ends = jnp.array([0.001, 1.0])
    np.testing.assert_array_equal(process.alpha(ends)[1], 0.0)
    np.testing.assert_array_equal(process.sigma(ends)[1], 1.0)
    np.testing.assert_allclose(process.alpha(ends)[0], plain.alpha(ends)[0], rtol=1e-6)
    assert plain.alpha(ends)[1] > 0.06
    with pytest.raises(ConfigError, match="without a table"):
        zero_terminal_snr(rectified_flow())


@each
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_can_be_split_again(process, kind):
    t = jnp.broadcast_to(jnp.linspace(0.1, 0.9, 5)[:, None], (5, 2)) * process.t_max
    x0, eps = noise_like((5, 2, 3)), noise_like((5, 2, 3), 1)
    x = corrupt(process, x0, t, eps)
    said = from_x0_eps(process, kind, x0, eps, t)
    found = to_x0_eps(process, kind, said, x, t)
    # A prediction of noise tells little of the data where there is little of it.
    tolerance = 3e-6 * float(jnp.max(1 + process.sigma(t) / process.alpha(t)))
    np.testing.assert_allclose(found[0], x0, atol=10 * tolerance)
    np.testing.assert_allclose(found[1], eps, atol=2e-4)


def test_v_is_the_velocity_per_angle():
    """On the circle `x = cos x0 + sin eps` it is `dx / d angle`: Salimans and Ho, appendix D."""
    process, t = trig_flow(), jnp.full((1, 2), 0.3)
    x0, eps = noise_like((1, 2, 3)), noise_like((1, 2, 3), 1)
    v, velocity = (from_x0_eps(process, kind, x0, eps, t) for kind in ("v", "velocity"))
    np.testing.assert_allclose(v, velocity / (np.pi / 2), rtol=1e-5, atol=1e-6)


def test_edm_feeds_unit_variance_and_its_own_time():
    process, seen = edm(0.5), {}

    def network(x, call, carry):
        seen.update(x=x, t=call.t)
        return jnp.zeros_like(x), carry

    t = jnp.array([[0.1, 3.0]])
    x = corrupt(process, 0.5 * noise_like((1, 2, 4000)), t, noise_like((1, 2, 4000), 1))
    denoised, _ = make_denoiser(network, process, "edm")(x, Call.at(t), None)
    np.testing.assert_allclose(seen["x"].std(-1), 1.0, rtol=0.05)
    np.testing.assert_allclose(seen["t"], jnp.log(t) / 4, rtol=1e-6)
    skip = 0.25 / (t**2 + 0.25)
    np.testing.assert_allclose(denoised.x0, skip[..., None] * x, rtol=1e-5, atol=1e-6)


@each_vp
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc2"])
def test_standard_normal_data_do_not_move(process, solver):
    """The exact flow from noise to data N(0, 1) is the identity, at every level."""
    x = noise_like((2, 3, 5))
    denoise = make_denoiser(lambda x, call, carry: (jnp.zeros_like(x), carry), process, "v")
    grid = step_levels(spaced_steps(20, "trailing"))
    end = sample(denoise, solver_named(solver), process, synchronous(grid, 3), x, jax.random.key(0))
    # One DDIM step along a chord of the circle loses a share 1 - cos(step).
    angle = np.arctan2(process.sigma(grid), process.alpha(grid))
    lost = 1 - np.prod(np.cos(np.diff(angle)))
    np.testing.assert_allclose(end.x, x * (1 - lost), rtol=0.15 if solver != "ddim" else 1e-5)


def test_grids_descend_end_clean_and_say_when_they_cannot():
    flow, grids = (
        rectified_flow(),
        {
            "karras": karras_levels(10, 0.002, 80.0),
            "exponential": exponential_levels(10, 0.01, 1.0),
            "lambda": uniform_lambda_levels(rectified_flow(), 10, 0.001, 0.999),
            "quadratic": linear_quadratic_levels(10),
            "explicit": explicit_levels([1.0, 0.7, 0.2]),
        },
    )
    for grid in grids.values():
        assert grid[-1] == 0 and (jnp.diff(grid) < 0).all() and grid.dtype == jnp.float32
    roots = np.asarray(grids["karras"][:-1], np.float64) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-4)
    np.testing.assert_allclose(grids["karras"][jnp.array([0, 9])], [80.0, 0.002], rtol=1e-5)
    ratios = grids["exponential"][1:-1] / grids["exponential"][:-2]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
    steps = jnp.diff(flow.lam(grids["lambda"][:-1]))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    even, rest = jnp.split(jnp.diff(grids["quadratic"]), [5])
    np.testing.assert_allclose(even, -0.005, rtol=1e-4)
    bends = jnp.diff(rest)
    np.testing.assert_allclose(bends, bends[0], rtol=1e-4)
    # The slope at the start of a parabola is half a bend before its first step.
    np.testing.assert_allclose(rest[0] - bends[0] / 2, even[0], rtol=1e-3)
    assert len(grids["explicit"]) == 4 == len(explicit_levels([1.0, 0.7, 0.2, 0.0]))
    for wrong in (
        lambda: explicit_levels([0.5, 0.7]),
        lambda: karras_levels(5, 2.0, 1.0),
        lambda: uniform_lambda_levels(flow, 5, 0.1, 1.0),
        lambda: linear_quadratic_levels(1),
        lambda: spaced_steps(1001, "trailing"),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_spacings_are_those_of_the_table_in_the_paper():
    # arXiv:2305.08891, table 2, for 10 of 1000 steps, counted from 0 here.
    assert spaced_steps(10, "leading")[0] == 900 and spaced_steps(10, "leading")[-1] == 0
    assert spaced_steps(10, "linspace")[0] == 999 and spaced_steps(10, "linspace")[-1] == 0
    assert spaced_steps(10, "trailing")[0] == 999 and spaced_steps(10, "trailing")[-1] == 99


def test_discrete_and_continuous_cosine_agree():
    t = jnp.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(TABLES["cosine table"].alpha(t), vp_cosine().alpha(t), atol=1e-5)


def test_ddim_between_two_levels_is_exact_for_a_known_point():
    process = vp_scaled_linear()
    x0, eps = noise_like((1, 2, 3)), noise_like((1, 2, 3), 1)
    denoise = make_denoiser(lambda x, call, carry: (x0, carry), process, "x0")
    grid = step_levels([999, 400])
    start = corrupt(process, x0, jnp.full((1, 2), grid[0]), eps)
    end = sample(denoise, DDIM(), process, synchronous(grid, 2), start, jax.random.key(0))
    np.testing.assert_allclose(end.x, x0, atol=1e-6)
