"""Values of any type become what a setting needs, or the message says what is wrong."""

import dataclasses
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.pipeline import Request
from jvdm.settings import Settings, check_numbers


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("height", np.int64(128), 128),
        ("height", np.array(128, np.int16), 128),
        ("height", 128.0, 128),
        ("num_frames", jnp.int32(33), 33),
        ("num_videos", np.float32(2.0), 2),
        ("prefix_frames", np.uint8(5), 5),
        ("fps", 24, 24.0),
        ("fps", Fraction(24000, 1001), 24000 / 1001),
        ("guidance_scale", np.float32(2.5), 2.5),
        ("shift", jnp.float32(2.0), 2.0),
        ("negative_prompt", "a box", "a box"),
        ("fit", "pad", "pad"),
    ],
)
def test_numbers_of_other_libraries_are_numbers(name, value, expected):
    found = getattr(check_numbers(Request(**{name: value})), name)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("height", "128", "height is '128' .str.; it must be a whole number; .*leave it out"),
        ("height", 128.5, "height is 128.5; it must be a whole number"),
        ("height", math.inf, "height is inf; it must be a whole number"),
        ("height", math.nan, "height is nan; it must be a whole number"),
        ("width", True, "width is True .bool.; it must be a whole number"),
        ("width", [128], r"width is \[128\] .list.; it must be a whole number"),
        (
            "num_frames",
            np.array([33]),
            "num_frames is array.* .ndarray.; it must be",
        ),
        ("num_inference_steps", 1j, "num_inference_steps is 1j .complex."),
        ("num_videos", "2", "num_videos is '2' .str."),
        ("prefix_frames", 1.5, "prefix_frames is 1.5"),
        ("fps", "12", "fps is '12' .str.; it must be a number"),
        ("fps", 0.5, "fps is 0.5; it must be a positive number from 1 to 240"),
        ("fps", 241, "fps is 241.0; it must be a positive number from 1 to 240"),
        ("guidance_scale", [1.0, 2.0], "guidance_scale is .*list.; it must be a number"),
        ("negative_prompt", ["a box"], "negative_prompt is .*list.; it must be text"),
        ("negative_prompt", b"a box", "negative_prompt is .*bytes.; it must be text"),
        ("fit", "zoom", "fit is 'zoom' .str.; it must be crop or pad or stretch"),
        ("fit", 3, "fit is 3; it must be crop or pad or stretch"),
        ("height", "9" * 100_000, "height is '9{1,90}"),
    ],
)
def test_what_is_no_value_of_a_setting_is_refused_in_one_line(name, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_numbers(Request(**{name: value}))
    assert len(str(caught.value)) < 250


def test_what_is_left_out_stays_left_out():
    assert check_numbers(Settings()) == Settings()
    names = {field.name for field in dataclasses.fields(Settings)}
    assert "fit" in names
