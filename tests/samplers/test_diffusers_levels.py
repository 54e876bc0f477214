"""Grids of published schedulers; the file of this name in `tests/parity` asks Diffusers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    DiffusersLevels,
    diffusers_levels,
    explicit_levels,
    karras_levels,
    shift_levels,
    whole_thousandths,
)

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def test_the_shift_of_the_flow_schedulers_is_applied_twice_at_the_clean_end_alone():
    levels = diffusers_levels(FLOW, 5)
    once = shift_levels(jnp.float32(0.001), 3.0)
    np.testing.assert_allclose(levels[-2], shift_levels(once, 3.0), rtol=1e-5)
    np.testing.assert_allclose(levels[-2], 0.0089, atol=1e-4)
    assert levels[0] == 1 and levels[-1] == 0 and len(levels) == 6
    # Levels that the user gives are nobody's to shift.
    given = jnp.array([0.97, 0.31, 0.0], jnp.float32)
    np.testing.assert_array_equal(explicit_levels(given.tolist()), given)


def test_a_config_is_a_mapping_text_or_a_file(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(FLOW))
    expected = diffusers_levels(FLOW, 7)
    for config in (json.dumps(FLOW), path, str(path)):
        np.testing.assert_array_equal(diffusers_levels(config, 7), expected)
    rule = DiffusersLevels(7, str(path))
    path.unlink()  # a rule holds what it read
    np.testing.assert_array_equal(rule(), expected)
    assert rule == DiffusersLevels(7, json.dumps(FLOW))


def test_dynamic_shifting_needs_its_number():
    config = {**FLOW, "use_dynamic_shifting": True}
    levels = diffusers_levels(config, 4, mu=1.15)
    even = jnp.linspace(1, 0.001, 4)[1:]
    ratio = levels[1:-1] / (1 - levels[1:-1]) / (even / (1 - even))
    np.testing.assert_allclose(ratio, np.exp(1.15), rtol=1e-3)
    with pytest.raises(ConfigError, match="no mu is given"):
        diffusers_levels(config, 4)


def test_edm_levels_are_karras_levels():
    config = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.01, "sigma_max": 5.0}
    np.testing.assert_array_equal(diffusers_levels(config, 6), karras_levels(6, 0.01, 5.0))


def test_whole_thousandths_cut_and_keep_whole_numbers():
    told = whole_thousandths(jnp.array([0.99325, 0.993, 0.001, 0.9999, 1.0, 0.0]))
    np.testing.assert_array_equal(told, [993, 993, 1, 999, 999, 0])
    every = whole_thousandths(jnp.asarray(np.arange(1001) / 1000, jnp.float32))
    np.testing.assert_array_equal(every[:-1], np.arange(1000))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "class PNDMScheduler.*use one of FlowMatchEuler"),
        ({**FLOW, "invert_sigmas": True}, "time runs the other way"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "a grid ends clean"),
        (
            {"_class_name": "UniPCMultistepScheduler", "final_sigmas_type": "sigma_min"},
            "final_sigmas_type = sigma_min",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "use_karras_sigmas.*need a table of noise",
        ),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 5}, "use 1 to 5 steps"),
        ("nowhere.json", "the scheduler nowhere.json.*cannot be read"),
        ("{]", "cannot be read"),
    ],
)
def test_what_is_not_known_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        diffusers_levels(config, 8)
