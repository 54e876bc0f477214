import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.samplers import (
    Call,
    Denoised,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Euler,
    Heun,
    Solver,
    UniPC,
    from_index,
    linspace_levels,
    rectified_flow,
    sample,
    shift_levels,
    synchronous,
    vp_cosine,
)
from jvdm.samplers.process import from_x0_eps
from jvdm.samplers.solvers import EDM, Context
from jvdm.samplers.solvers.exponential import Past
from jvdm.samplers.solvers.unipc import Predicted
from tests.samplers.problems import mixture_denoiser, mixture_end, noise_like

FLOW, COSINE = rectified_flow(), vp_cosine()
SOLVERS = (Euler(), Heun(), Heun(correct_last=True))
NOISE = noise_like((2, 4, 16))
KEY = jax.random.key(0)


@functools.cache
def runner(solver, process):
    """One jitted run per solver; compiled once per shape of matrix."""
    denoise = mixture_denoiser(process)
    return jax.jit(lambda matrix, x: sample(denoise, solver, process, matrix, x, KEY).x)


def coarser(levels, steps, lag=0):
    """A wave of `steps` steps on every n-th level of a fine grid: all have one shape."""
    fine = levels.shape[0] - 1
    rows = np.arange(fine + 3 * 3 + 1)
    index = np.clip(rows[:, None] - lag * np.arange(4), 0, steps) * (fine // steps)
    grids = levels if levels.ndim == 2 else jnp.stack([levels] * 4, axis=1)
    return from_index(grids, index)


def errors(solver, process, matrices, end):
    run = runner(solver, process)
    return np.array([np.abs(run(matrix, NOISE) - end).mean() for matrix in matrices])


def observed_order(solver, process, levels, end, lag=0):
    matrices = [coarser(levels, steps, lag) for steps in (20, 40, 80)]
    found = errors(solver, process, matrices, end)
    return np.log2(found[:-1] / found[1:])


END = mixture_end(np.asarray(NOISE))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("lag", [0, 3])
def test_error_on_the_flow_falls_at_the_order_of_the_solver(solver, lag):
    levels = shift_levels(linspace_levels(80), 2.0)
    order = observed_order(solver, FLOW, levels, END, lag)
    expected = 1 if isinstance(solver, Euler) else 2
    assert (order > expected - 0.15).all() and (order < expected + 0.5).all(), order


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_order_holds_when_every_frame_has_its_own_grid(solver):
    grids = [shift_levels(linspace_levels(80), shift) for shift in (0.5, 1.0, 2.0, 4.0)]
    order = observed_order(solver, FLOW, jnp.stack(grids, axis=1), END, lag=3)
    assert (order > solver.evaluations - 0.15).all(), order


@pytest.mark.parametrize("solver", SOLVERS[:2], ids=str)
def test_order_on_the_cosine_process_away_from_its_singular_end(solver):
    stop = 0.2
    levels = 1 - (1 - stop) * linspace_levels(80)[::-1]
    level = levels[-1]
    end = mixture_end(np.asarray(NOISE), float(COSINE.alpha(level)), float(COSINE.sigma(level)))
    order = observed_order(solver, COSINE, levels, end)
    assert (order > solver.evaluations - 0.15).all(), order


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_cosine_process_reaches_the_data(solver):
    matrices = [coarser(linspace_levels(80), steps) for steps in (20, 80)]
    found = errors(solver, COSINE, matrices, END)
    assert found[1] < 0.4 * found[0] and found[1] < 0.02, found


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_normal_data_under_a_variance_preserving_process_do_not_move(solver):
    def denoise(x, call, carry):
        alpha, sigma = (share(call.t)[..., None] for share in (COSINE.alpha, COSINE.sigma))
        return Denoised(alpha * x, sigma * x), carry

    matrix = synchronous(linspace_levels(64), 4)
    run = jax.jit(lambda x: sample(denoise, solver, COSINE, matrix, x, KEY).x)
    # The velocity is (alpha alpha' + sigma sigma') x = 0 at every level.
    np.testing.assert_allclose(run(NOISE), NOISE, atol=1e-2)


def context_of(process, t, t_next, denoise=None, x=NOISE, **fields):
    """A step outside of the loop, of all frames alike."""
    t, t_next = (jnp.full(x.shape[:2], level) for level in (t, t_next))
    moving = jnp.ones(x.shape[:2], bool)
    counts = {name: jnp.full(x.shape[:2], fields.get(name, 1)) for name in ("updates", "remaining")}
    return Context(
        denoise=denoise or mixture_denoiser(process),
        t=t,
        t_next=t_next,
        carry=None,
        process=process,
        moving=moving,
        noise=lambda number: fields.get("noise", x),
        row=Call.at(t).row,
        **counts,
    )


def step(solver, process, t, t_next, poison=None):
    """One step outside of the loop; returns the result and the calls of the network."""
    asked = []

    def denoise(x, call, carry):
        asked.append(call)
        denoised, carry = mixture_denoiser(process)(x, call, carry)
        if poison is not None:
            bad = (call.t == poison)[..., None]
            denoised = jax.tree.map(lambda v: jnp.where(bad, jnp.nan, v), denoised)
        return denoised, carry

    context = context_of(process, t, t_next, denoise)
    return solver.step(NOISE, solver.init(NOISE), context).x, asked


def test_heun_is_the_mean_of_both_ends():
    got, _ = step(Heun(), FLOW, 0.8, 0.6)
    denoise = mixture_denoiser(FLOW)
    t, t_next = (jnp.full(NOISE.shape[:2], level) for level in (0.8, 0.6))
    first = from_x0_eps(FLOW, "velocity", *denoise(NOISE, Call.at(t), None)[0], t)
    ahead = denoise(NOISE - 0.2 * first, Call.at(t_next), None)[0]
    second = from_x0_eps(FLOW, "velocity", *ahead, t_next)
    np.testing.assert_allclose(got, NOISE - 0.1 * (first + second), atol=1e-6)


@pytest.mark.parametrize("solver", [Heun(), EDM(), DPMSolverPP2S(), EDM(s_churn=9.0)], ids=str)
def test_a_second_evaluation_has_a_level_of_its_own_and_the_end_of_the_step(solver):
    _, (first, second) = step(solver, FLOW, 0.8, 0.6)
    churned = isinstance(solver, EDM) and solver.s_churn > 0
    assert (first.t > 0.8 if churned else first.t == np.float32(0.8)).all()
    middle = isinstance(solver, DPMSolverPP2S)
    assert ((second.t > 0.61) & (second.t < 0.79) if middle else second.t == np.float32(0.6)).all()
    for call in (first, second):
        np.testing.assert_array_equal(call.t_next, np.float32(0.6))


@pytest.mark.parametrize("process", [FLOW, COSINE], ids=["flow", "cosine"])
def test_heun_ends_with_an_euler_step(process):
    heun, _ = step(Heun(), process, 0.1, 0.0, poison=0.0)
    euler, _ = step(Euler(), process, 0.1, 0.0)
    np.testing.assert_array_equal(heun, euler)


def test_heun_corrects_the_last_step_only_on_request_and_where_it_can():
    flow, _ = step(Heun(correct_last=True), FLOW, 0.1, 0.0)
    assert not jnp.allclose(flow, step(Euler(), FLOW, 0.1, 0.0)[0], atol=1e-4)
    cosine, _ = step(Heun(correct_last=True), COSINE, 0.1, 0.0, poison=0.0)
    np.testing.assert_array_equal(cosine, step(Euler(), COSINE, 0.1, 0.0)[0])


def test_a_singular_process_ends_with_the_clean_estimate():
    got, _ = step(Euler(), COSINE, 0.1, 0.0)
    t = jnp.full(NOISE.shape[:2], 0.1)
    np.testing.assert_array_equal(got, mixture_denoiser(COSINE)(NOISE, Call.at(t), None)[0].x0)


def last_step(solver, past, remaining):
    """One step with a history that is given."""
    context = context_of(FLOW, 0.6, 0.5, updates=3, remaining=remaining)
    return np.asarray(solver.step(NOISE, past, context).x)


def history(levels=(0.7, 0.8, 0.9)):
    return tuple(
        Past(FLOW.lam(jnp.full(NOISE.shape[:2], level)), noise_like(NOISE.shape, seed))
        for seed, level in enumerate(levels)
    )


def test_no_more_estimates_are_used_than_steps_remain():
    """With two steps left an order of three is one of two, and with one left one of one."""
    past = history()
    three, two = DPMSolverPP3M(lower_order_final=True), DPMSolverPP2M()
    np.testing.assert_array_equal(last_step(three, past[:2], 2), last_step(two, past[0], 2))
    assert not np.allclose(last_step(three, past[:2], 3), last_step(two, past[0], 3), atol=1e-3)
    full = last_step(DPMSolverPP3M(), past[:2], 2)
    np.testing.assert_array_equal(full, last_step(three, past[:2], 3))

    def unipc(order, remaining, **settings):
        state = Predicted(noise_like(NOISE.shape, 9), past[:order])
        return last_step(UniPC(order, **settings), state, remaining)

    plain = {"corrector": False}
    np.testing.assert_array_equal(unipc(3, 2, **plain), unipc(2, 2, **plain))
    assert not np.allclose(unipc(3, 3, **plain), unipc(2, 3, **plain), atol=1e-3)
    # The corrector of the step before has one order more than that step had.
    np.testing.assert_array_equal(unipc(3, 1), unipc(2, 1))
    assert not np.allclose(unipc(3, 1), unipc(1, 1), atol=1e-3)
    late = {"lower_order_final": False}
    np.testing.assert_array_equal(unipc(3, 1, **late), unipc(3, 4))


def test_the_sde_without_noise_is_the_ode():
    """As the strength of the noise goes to 0 its step becomes that of the same order."""
    past = history()[0]
    np.testing.assert_allclose(
        last_step(DPMSolverPP2M(eta=1e-6), past, 3), last_step(DPMSolverPP2M(), past, 3), atol=5e-3
    )


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_keeps_the_noise_of_the_level(eta):
    """Data of nothing leave noise alone: what is kept and what is fresh make up the level's."""
    x = noise_like((1, 1, 20_000))
    nothing = lambda x, call, carry: (Denoised(0 * x, x / 0.6), carry)  # noqa: E731
    context = context_of(FLOW, 0.6, 0.3, nothing, 0.6 * x, noise=noise_like(x.shape, 1))
    solver = DPMSolverPP2M(eta)
    got = solver.step(0.6 * x, solver.init(x), context).x
    np.testing.assert_allclose(float(jnp.std(got)), 0.3, rtol=0.02)
    # A share exp(-eta h) of it is the noise that was there; h is the gain in log(alpha / sigma).
    h = float(FLOW.lam(jnp.float32(0.3)) - FLOW.lam(jnp.float32(0.6)))
    kept = float(jnp.vdot(got, x) / jnp.vdot(x, x))
    np.testing.assert_allclose(kept, 0.3 * np.exp(-eta * h), atol=0.01)


def churned(solver, x, t=0.6, **fields):
    """What churn makes of latents, and the level that it raises them to."""
    context = context_of(FLOW, t, 0.3, x=x, noise=noise_like(x.shape, 1), **fields)
    noisier, raised = solver.begin(x, context)
    return np.asarray(noisier), float(raised[0, 0])


def ratio(t):
    return t / (1 - t)


def test_churn_raises_the_level_and_adds_the_noise_that_belongs_to_it():
    x = 0.6 * noise_like((1, 1, 20_000))  # no data, and the noise of level .6
    noisier, raised = churned(EDM(s_churn=2.0), x, updates=3, remaining=17)
    np.testing.assert_allclose(ratio(raised), ratio(0.6) * 1.1, rtol=1e-5)  # 2 in 20 steps
    np.testing.assert_allclose(noisier.std(), raised, rtol=0.02)
    _, most = churned(EDM(s_churn=100.0), x, updates=3, remaining=17)
    np.testing.assert_allclose(ratio(most), ratio(0.6) * 2**0.5, rtol=1e-5)
    double, single = (churned(EDM(s_churn=2.0, s_noise=s), 0 * x)[0].std() for s in (2.0, 1.0))
    np.testing.assert_allclose(double, 2 * single, rtol=1e-5)


def test_churn_keeps_the_share_of_data_and_its_range():
    data = jnp.full((1, 1, 20_000), 0.4)  # data of 1 at level .6
    noisier, raised = churned(EDM(s_churn=2.0), data, updates=3, remaining=17)
    np.testing.assert_allclose(noisier.mean(), 1 - raised, atol=0.01)
    for solver in (EDM(s_churn=2.0, s_max=1.4), EDM(s_churn=2.0, s_min=1.6)):  # the ratio is 1.5
        same, level = churned(solver, data)
        assert level == np.float32(0.6) and (same == np.float32(0.4)).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_solvers_are_hashable_values(solver):
    assert isinstance(solver, Solver)
    again = type(solver)(**vars(solver))
    assert solver == again and hash(solver) == hash(again)
    chex.clear_trace_counter()

    @chex.assert_max_traces(1)
    def evaluations(solver, x):
        return x * solver.evaluations

    compiled = jax.jit(evaluations, static_argnums=0)
    assert compiled(solver, 1.0) == compiled(again, 1.0)
