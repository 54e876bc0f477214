"""What the samplers know of a network: a function from `x, t` to clean data and noise."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int, PyTree
from jvdm.samplers.process import PredictionKind, Process, expand, to_x0_eps


class Denoised(NamedTuple):
    """A network's opinion of `x_t`, as data and noise.

    They are separate values because guidance and editing rules may change one and keep
    the other; unless they do, `x_t = alpha x0 + sigma eps`.

    Attributes:
        x0: f32[B, F, ...], the clean data.
        eps: f32[B, F, ...], the noise.
    """

    x0: Array
    eps: Array


@runtime_checkable
class Denoiser(Protocol):
    """`(x, t, carry) -> (Denoised, carry)`: one evaluation of a network.

    `carry` is whatever the network remembers between calls (caches, the state of an
    attention policy, momentum); None when it remembers nothing.
    """

    def __call__(self, x: Array, t: Array, carry: PyTree, /) -> tuple[Denoised, PyTree]:
        """Evaluates the network on the frames of one window."""
        ...


@runtime_checkable
class Predict(Protocol):
    """`(x, model_time, carry) -> (prediction, carry)`: a network with its conditions."""

    def __call__(self, x: Array, t: Array, carry: PyTree, /) -> tuple[Array, PyTree]:
        """Evaluates the network on the frames of one window."""
        ...


class Row(NamedTuple):
    """Where in a run a network is called.

    Attributes:
        index: i32[], row of the timestep matrix.
        start: i32[], first frame of the window.
        write: bool[W], frames of the window whose keys and values are to be kept.
    """

    index: Int[Array, ""]
    start: Int[Array, ""]
    write: Bool[Array, " W"]


@runtime_checkable
class RowAware(Protocol):
    """A part of the carry that must know the row, such as a cache of keys and values.

    The loop calls `at_row` before each row on every part of the carry that has it.
    """

    def at_row(self, row: Row) -> "RowAware":
        """Returns itself placed at `row`, of the same structure and shapes."""
        ...


def make_denoiser(
    predict: Predict, process: Process, prediction: PredictionKind = "velocity"
) -> Denoiser:
    """Turns a network into a denoiser.

    Args:
        predict: The network with its parameters and conditions; told
            `process.model_time(t)`. Its output may be of any float type.
        process: The corruption process that it was trained on.
        prediction: What it predicts.
    """

    def denoise(
        x: Float[Array, "B F ..."], t: Float[Array, "B F"], carry: PyTree
    ) -> tuple[Denoised, PyTree]:
        fed = x
        if process.scale_input:
            fed = x / expand(jnp.hypot(process.alpha(t) * process.data_std, process.sigma(t)), x)
        value, carry = predict(fed, process.model_time(t), carry)
        value = value.astype(jnp.float32)
        return Denoised(*to_x0_eps(process, prediction, value, x, t)), carry

    return denoise
