"""Level grids against `set_timesteps` of the schedulers of Diffusers."""

import numpy as np
import pytest

from jvdm.samplers import diffusers_levels, whole_thousandths

diffusers = pytest.importorskip("diffusers", reason="parity tests need Diffusers")

pytestmark = pytest.mark.parity

FLOW_EULER, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
DPM = "DPMSolverMultistepScheduler"
ON_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOWS = [
    (FLOW_EULER, {}, {}),
    (FLOW_EULER, {"shift": 3.0}, {}),
    (FLOW_EULER, {"shift": 3.0, "shift_terminal": 0.1}, {}),
    (FLOW_EULER, {"shift": 3.0, "use_karras_sigmas": True}, {}),
    (FLOW_EULER, {"use_exponential_sigmas": True}, {}),
    (FLOW_EULER, {"use_beta_sigmas": True}, {}),
    (FLOW_EULER, {"use_dynamic_shifting": True}, {"mu": 1.15}),
    (FLOW_EULER, {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.0}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {}),
    (DPM, {**ON_FLOW, "flow_shift": 3.0}, {}),
    (UNIPC, {**ON_FLOW, "flow_shift": 5.0}, {}),
    (UNIPC, {**ON_FLOW, "flow_shift": 12.0, "shift_terminal": 0.0205}, {}),
    ("EDMEulerScheduler", {"sigma_schedule": "karras"}, {}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential", "sigma_min": 0.01}, {}),
]
TABLES = [
    (name, {"timestep_spacing": spacing, "steps_offset": offset})
    for name in ("DDIMScheduler", "DDPMScheduler", "CogVideoXDPMScheduler", DPM, UNIPC)
    for spacing, offset in (("leading", 1), ("trailing", 0), ("linspace", 0))
] + [("DDIMScheduler", {}), (DPM, {}), ("LCMScheduler", {})]


def made(name, settings, steps, given):
    """Returns a scheduler with its levels set, and what its JSON says."""
    scheduler = getattr(diffusers, name)(**settings)
    config = {"_class_name": name, **scheduler.config, "set_alpha_to_one": True}
    scheduler.set_timesteps(steps, **given)
    return scheduler, config


@pytest.mark.parametrize("steps", [4, 25])
@pytest.mark.parametrize(("name", "settings", "given"), FLOWS, ids=str)
def test_levels_are_the_sigmas(name, settings, given, steps):
    scheduler, config = made(name, settings, steps, given)
    sigmas = np.unique(scheduler.sigmas.numpy())[::-1]
    levels = diffusers_levels(config, steps, **given)
    np.testing.assert_allclose(levels, sigmas, rtol=1e-5, atol=2e-6)
    if name in (DPM, UNIPC):
        np.testing.assert_array_equal(whole_thousandths(levels[:-1]), scheduler.timesteps.numpy())


@pytest.mark.parametrize("steps", [4, 25])
@pytest.mark.parametrize(("name", "settings"), TABLES, ids=str)
def test_levels_are_the_steps_of_a_table(name, settings, steps):
    scheduler, config = made(name, settings, steps, {})
    levels = np.asarray(diffusers_levels(config, steps), np.float64)
    np.testing.assert_allclose(1000 * levels[:-1] - 1, scheduler.timesteps.numpy(), atol=1e-4)
    assert levels[-1] == 0
