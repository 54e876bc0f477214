"""What the samplers know of a network: a function from `x` and a call to data and noise."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from jvdm.arrays import Array, Bool, Float, Int, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.process import PredictionKind, Process, Values, expand, to_x0_eps


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


class Row(NamedTuple):
    """Where in a run a network is called.

    Attributes:
        index: i32[], row of the timestep matrix.
        start: i32[], first frame of the window.
        write: bool[W], frames of the window whose keys and values are to be kept.
        frame: i32[], absolute index of the first frame of the window in its video; a stream
            counts on where `start` stays 0.
    """

    index: Int[Array, ""]
    start: Int[Array, ""]
    write: Bool[Array, " W"]
    frame: Int[Array, ""]


class Call(NamedTuple):
    """What a network is told besides the latents.

    Attributes:
        t: f32[B, W], the noise level of each frame.
        t_next: f32[B, W], the level that the step leads to; `t` for a frozen frame.
        row: Where in the run it is called.
    """

    t: Float[Array, "B W"]
    t_next: Float[Array, "B W"]
    row: Row

    @classmethod
    def at(cls, t: Float[Array, "B W"], t_next: Float[Array, "B W"] | None = None) -> "Call":
        """Returns a call outside of a run: row 0, nothing written, to clean data by default."""
        first = jnp.zeros((), jnp.int32)
        row = Row(first, first, jnp.zeros(t.shape[1:], bool), first)
        return cls(t, jnp.zeros_like(t) if t_next is None else t_next, row)


class PerFrame(NamedTuple):
    """A part of a carry that belongs to frames: a stream moves it on with them.

    Attributes:
        values: f32[B, F, ...], 0 for frames that have not started.
    """

    values: Array


Denoiser = Callable[[Array, Call, PyTree], tuple[Denoised, PyTree]]
"""`(x, call, carry) -> (Denoised, carry)`: one evaluation of a network on the frames of one window.

`carry` is whatever the network remembers between calls (caches, the state of an
attention policy, momentum); None when it remembers nothing.
"""

Predict = Callable[[Array, Call, PyTree], tuple[Array, PyTree]]
"""`(x, call, carry) -> (prediction, carry)`: a network with its conditions.

`call.t` and `call.t_next` are `process.model_time` of the levels.
"""


def make_denoiser(
    predict: Predict,
    process: Process,
    prediction: PredictionKind = "velocity",
    condition: Shaped[Array, "#B _ ..."] | None = None,
) -> Denoiser:
    """Turns a network into a denoiser.

    Args:
        predict: The network with its parameters and conditions; told
            `process.model_time` of the levels. Its output may be of any float type.
        process: The corruption process that it was trained on.
        prediction: What it predicts.
        condition: Clean latents of all frames that a `conditioned` process leads to.
    """

    def denoise(x: Values, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        value, carry = ask(predict, process, x, call, carry, condition)
        return Denoised(*to_x0_eps(process, prediction, value, x, call.t)), carry

    return denoise


def ask(
    predict: Predict,
    process: Process,
    x: Values,
    call: Call,
    carry: PyTree,
    condition: Shaped[Array, "#B _ ..."] | None = None,
) -> tuple[Values, PyTree]:
    """Asks a network in the way that its process says, in training as in sampling.

    Returns:
        Its prediction in float32, told `process.model_time` of the levels and fed `x`, with the
        condition and scaled where the process says so; and the next carry.

    Raises:
        ConfigError: If the process needs a condition and there is none.
    """
    t, fed = call.t, x
    if process.conditioned:
        if condition is None:
            raise ConfigError(
                "the process leads to a condition",
                "there is none",
                "give the model a clip (--channel), or choose another process",
            )
        shown = in_window(condition, call.row, x.shape[1])
        fed = x + expand(process.pull(t), x) * shown
    if process.scale_input:
        fed = fed / expand(jnp.hypot(process.alpha(t) * process.data_std, process.sigma(t)), x)
    told = Call(process.model_time(t), process.model_time(call.t_next), call.row)
    value, carry = predict(fed, told, carry)
    return value.astype(jnp.float32), carry


def in_window(values: Array, row: Row, window: int, axis: int = 1) -> Array:
    """Returns the frames of `values` that a row feeds; a single one is every frame's."""
    if values.shape[axis] in (1, window):
        return values
    return jax.lax.dynamic_slice_in_dim(values, row.start, window, axis=axis)
