"""Frozen values survive JSON, and what cannot be read again is refused before it is written."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import pytest

from jvdm.errors import ConfigError, WeightsError
from jvdm.models import VideoDiT
from jvdm.samplers import DDIM, UniPC, edm, rectified_flow, vp_linear, zero_terminal_snr
from jvdm.values import from_data, to_data


@dataclasses.dataclass(frozen=True)
class Window:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Net:
    width: int = 8
    shape: tuple[tuple[int, ...], ...] = ((1, 2),)
    dtype: Any = jnp.bfloat16
    policy: Any = Window()


def again(value):
    return from_data(json.loads(json.dumps(to_data(value))))


@pytest.mark.parametrize(
    "value",
    [
        Net(width=16, shape=((3,), (4, 5)), dtype="float32", policy=Window(size=5)),
        VideoDiT(width=96, head_dim=32, rotary_axes=(8, 12, 12)),
        UniPC(3, corrector=False),
        DDIM(eta=0.5),
        rectified_flow(),
        rectified_flow(jnp.log1p),
        edm(t_max=40.0),
        zero_terminal_snr(vp_linear(steps=100)),
        ((1, 2.5), "text", None, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_comes_back_equal(value):
    assert again(value) == value
    hash(again(value))


def test_arrays_of_numbers_come_back():
    back = again(Net(policy=jnp.array([[0.5, 1.0], [2.0, 3.0]])))
    assert back.policy.tolist() == [[0.5, 1.0], [2.0, 3.0]]


def test_types_of_numbers_are_names():
    assert again(Net()) == Net(dtype="bfloat16")


def test_what_no_other_process_could_import_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        size: int = 3

    with pytest.raises(ConfigError, match="net.policy is .*Inner.*define it at the top"):
        to_data(Net(policy=Inner()), "net")
    with pytest.raises(ConfigError, match="process.arguments|model_time|lambda"):
        to_data(rectified_flow(lambda t: t), "process")
    with pytest.raises(ConfigError, match="policy is <object"):
        to_data(Net(policy=object()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"class": "jvdm.samplers.solvers.unipc:UniPC9"}, "UniPC9 is named.*update jvdm"),
        ({"class": "jvdm.nowhere:X"}, "does not have it.*update jvdm"),
        ({"class": "os:system", "command": "touch /tmp/never"}, "import os before"),
        ({"class": "jvdm.arrays:PyTree"}, "neither a dataclass nor a recipe"),
        ({"recipe": "jvdm.samplers.levels:linspace_levels"}, "neither a dataclass nor a recipe"),
        ({"class": "never_imported:X"}, "import never_imported before"),
        ({"class": "tests.test_values:Net", "widht": 3}, "a Net is described.*widht"),
    ],
)
def test_what_is_not_there_is_named(data, message):
    with pytest.raises(WeightsError, match=message):
        from_data(data)
