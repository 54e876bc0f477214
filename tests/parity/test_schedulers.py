"""Solvers against the schedulers of Diffusers, step by step: on flows, on tables, with noise."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.keys import addressed_normal
from jvdm.samplers import (
    DDIM,
    DDPM,
    EDM,
    Consistency,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Euler,
    Heun,
    UniPC,
    advance,
    diffusers_levels,
    edm,
    from_index,
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


def test_frames_at_levels_of_their_own_are_the_per_token_steps_of_diffusers():
    """Theirs adds what the scalar step takes away, so its callers hand over the negative."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    levels, ahead = scheduler.sigmas.numpy(), np.array([0, 3, 7, STEPS])
    index = np.clip(np.arange(STEPS + 1)[:, None] + ahead[None], 0, STEPS)
    matrix = from_index(jnp.asarray(levels), index)
    noise = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    denoise = make_denoiser(lambda x, call, carry: (jnp.sin(2 * x), carry), FLOW)
    state = start(Euler(), jnp.asarray(noise), jax.random.key(0))
    one = jax.jit(functools.partial(advance, denoise, Euler(), FLOW, matrix, num_rows=1))
    x = torch.from_numpy(noise)
    for row, timestep in enumerate(scheduler.timesteps):
        each = torch.from_numpy(levels[index[row]])[None].repeat(2, 1) * 1000
        told = {"per_token_timesteps": each}
        x = scheduler.step(-torch.sin(2 * x), timestep, x, **told).prev_sample
        state = one(state=state, row=row)
        assert_equal(state.x, x.numpy())
    np.testing.assert_array_equal(state.x[:, 3], noise[:, 3])


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
        assert_equal(state.x, latents)


SDE = {**VP, "algorithm_type": "sde-dpmsolver++", "prediction_type": "v_prediction"}
NO_CLIP = {**VP, "clip_sample": False, "prediction_type": "v_prediction"}
COG = {**NO_CLIP, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
STOCHASTIC = {
    "ddim, eta 1": (DDIM(1.0), "DDIMScheduler", NO_CLIP, {"eta": 1.0}),
    "ddim, eta .3": (DDIM(0.3), "DDIMScheduler", NO_CLIP, {"eta": 0.3}),
    "ddpm, small": (
        DDPM("small"),
        "DDPMScheduler",
        {**NO_CLIP, "variance_type": "fixed_small"},
        {},
    ),
    "ddpm, large": (
        DDPM("large"),
        "DDPMScheduler",
        {**NO_CLIP, "variance_type": "fixed_large"},
        {},
    ),
    "2m sde": (DPMSolverPP2M(eta=1.0), DPM, SDE, {}),
    "lcm": (Consistency(scaling=10.0), "LCMScheduler", NO_CLIP, {}),
    "cogvideox": (
        DPMSolverPP2M(eta=1.0),
        "CogVideoXDPMScheduler",
        {**COG, "snr_shift_scale": 3.0},
        {},
    ),
}


def drawn(state):
    """Returns the noise that a solver draws in its next step."""
    key = jax.random.fold_in(state.key, 0)
    samples, frames = state.address
    return addressed_normal(key, samples, frames, state.x.shape[2:], state.updates)


@pytest.mark.parametrize("case", STOCHASTIC)
def test_every_step_with_equal_noise_equals_that_of_diffusers(case, monkeypatch):
    solver, name, settings, given = STOCHASTIC[case]
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(STEPS)
    config = {"_class_name": name, **scheduler.config, "set_alpha_to_one": True}
    process = vp_scaled_linear(snr_shift=settings.get("snr_shift_scale", 1.0))
    if settings.get("rescale_betas_zero_snr"):
        process = zero_terminal_snr(process)
    denoise = make_denoiser(lambda x, call, carry: (jnp.sin(2 * x), carry), process, "v")
    noise = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    state = start(solver, jnp.asarray(noise), jax.random.key(0))
    matrix = synchronous(diffusers_levels(config, STEPS), 3)
    one = jax.jit(functools.partial(advance, denoise, solver, process, matrix, num_rows=1))
    x, earlier, module = torch.from_numpy(noise), (), sys.modules[type(scheduler).__module__]
    for row, timestep in enumerate(scheduler.timesteps):
        fresh = torch.from_numpy(np.array(drawn(state)))
        monkeypatch.setattr(module, "randn_tensor", lambda *_, fresh=fresh, **__: fresh)
        if name.startswith("Cog"):  # its caller keeps the last estimate and its step
            old, back = earlier or (None, None)
            x, old = scheduler.step(torch.sin(2 * x), old, timestep, back, x, **given)[:2]
            earlier = (old, timestep)
        else:
            x = scheduler.step(torch.sin(2 * x), timestep, x, **given).prev_sample
        state = one(state=state, row=row)
        assert_equal(state.x, x.numpy())


def test_edm_euler_equals_that_of_diffusers():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=20.0)
    scheduler.set_timesteps(STEPS)
    config = {"_class_name": "EDMEulerScheduler", **scheduler.config}
    process, solver = edm(t_max=20.0), EDM(corrector=False)
    fed = []

    def network(x, call, carry):
        jax.debug.callback(lambda *seen: fed.append(seen), x, call.t)
        return jnp.sin(2 * x), carry

    denoise = make_denoiser(network, process, "edm")
    noise = 20 * np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    state = start(solver, jnp.asarray(noise), jax.random.key(0))
    matrix = synchronous(diffusers_levels(config, STEPS), 3)
    one = jax.jit(functools.partial(advance, denoise, solver, process, matrix, num_rows=1))
    x = torch.from_numpy(noise)
    for row, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(torch.sin(2 * scaled), timestep, x).prev_sample
        state = one(state=state, row=row)
        jax.effects_barrier()
        assert_equal(fed[row][0], scaled.numpy())
        np.testing.assert_allclose(fed[row][1], timestep.item(), rtol=1e-5)
        assert_equal(state.x, x.numpy())
