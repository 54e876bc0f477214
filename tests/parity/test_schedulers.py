"""Solvers against the schedulers of Diffusers, step by step, on rectified flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.samplers import (
    DDIM,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Euler,
    Heun,
    UniPC,
    advance,
    make_denoiser,
    rectified_flow,
    spaced_steps,
    start,
    step_levels,
    synchronous,
    vp_scaled_linear,
    zero_terminal_snr,
)
from tests.parity.compare import assert_equal

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")
diffusers = pytest.importorskip("diffusers", reason="parity tests need Diffusers")

pytestmark = pytest.mark.parity

FLOW, STEPS = rectified_flow(), 20
MULTISTEP = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
CASES = {
    "flow euler": (Euler(), "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow heun": (Heun(), "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "2m": (DPMSolverPP2M(), DPM, MULTISTEP),
    "2m heun": (DPMSolverPP2M(rule="exact"), DPM, {**MULTISTEP, "solver_type": "heun"}),
    "3m": (
        DPMSolverPP3M(compat=True),
        DPM,
        {**MULTISTEP, "solver_order": 3, "lower_order_final": False},
    ),
    **{
        f"unipc{order} {rule}": (
            UniPC(order, rule=rule),
            UNIPC,
            {**MULTISTEP, "solver_order": order, "solver_type": rule},
        )
        for order in (1, 2, 3)
        for rule in ("bh1", "bh2")
    },
}


def reference(name, settings, noise):
    """Returns the levels of a scheduler's run and its latents after each of them."""
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(STEPS)
    levels = torch.unique(scheduler.sigmas).flip(0).numpy()
    x, found = torch.from_numpy(noise), []
    for timestep in scheduler.timesteps:
        step = scheduler.step(torch.sin(2 * x), timestep, x)
        x = step.prev_sample
        found.append(x.numpy())
    return levels, found


@pytest.mark.parametrize("case", CASES)
def test_every_step_equals_that_of_diffusers(case):
    solver, name, settings = CASES[case]
    noise = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    levels, found = reference(name, settings, noise)
    denoise = make_denoiser(lambda x, call, carry: (jnp.sin(2 * x), carry), FLOW)
    matrix = synchronous(jnp.asarray(levels), 3)
    state = start(solver, jnp.asarray(noise), jax.random.key(0))
    one = jax.jit(functools.partial(advance, denoise, solver, FLOW, matrix, num_rows=1))
    # A solver of two evaluations is two calls of Diffusers, but for its last step.
    expected = found[1::2] + found[-1:] if solver.evaluations == 2 else found
    assert len(expected) == matrix.num_rows
    for row, latents in enumerate(expected):
        state = one(state=state, row=row)
        assert np.isfinite(state.x).all()
        if row + 1 == len(expected) and settings.get("solver_type") == "bh1":
            assert np.isnan(latents).all()  # Diffusers multiplies 0 by an infinite step there
        else:
            assert_equal(state.x, latents)


VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {**VP, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
ON_TABLES = {
    "ddim": (DDIM(), "DDIMScheduler", {**TRAILING, "clip_sample": False}),
    "ddim, zero snr": (
        DDIM(),
        "DDIMScheduler",
        {**TRAILING, "clip_sample": False, "rescale_betas_zero_snr": True},
    ),
    "2m": (DPMSolverPP2M(), DPM, TRAILING),
    "unipc2": (UniPC(2), UNIPC, {**TRAILING, "solver_order": 2}),
}


@pytest.mark.parametrize("case", ON_TABLES)
def test_every_step_on_a_table_equals_that_of_diffusers(case):
    solver, name, settings = ON_TABLES[case]
    process = vp_scaled_linear()
    if "zero snr" in case:
        process = zero_terminal_snr(process)
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(STEPS)
    steps = spaced_steps(STEPS, "trailing")
    assert scheduler.timesteps.tolist() == steps
    noise = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    x, found = torch.from_numpy(noise), []
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.sin(2 * x), timestep, x).prev_sample
        found.append(x.numpy())
    grid = step_levels(steps)
    denoise = make_denoiser(lambda x, call, carry: (jnp.sin(2 * x), carry), process, "v")
    state = start(solver, jnp.asarray(noise), jax.random.key(0))
    matrix = synchronous(grid, 3)
    one = jax.jit(functools.partial(advance, denoise, solver, process, matrix, num_rows=1))
    for row, latents in enumerate(found):
        state = one(state=state, row=row)
        assert_equal(state.x, latents, 2e-5)
