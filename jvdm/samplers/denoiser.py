"""What the samplers know of a network: a function from `x` and a call to data and noise."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jvdm.arrays import Array, Bool, Float, Int, Key, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.modalities import each, every
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


class Draws(NamedTuple):
    """What addressed noise of a call is drawn from.

    Attributes:
        key: Stream of the run.
        samples: i32[B], index of each sample in the whole job.
    """

    key: Key
    samples: Int[Array, " B"]


class Row(NamedTuple):
    """Where in a run a network is called.

    Attributes:
        index: i32[], row of the timestep matrix.
        start: i32[], first frame of the window.
        write: bool[W], frames of the window whose keys and values are to be kept; of NumPy where
            a program knows them.
        frame: i32[], absolute index of the first frame of the window in its video; a stream
            counts on where `start` stays 0.
        moving: bool[W], frames that are not frozen in the step; None outside of a run.
        draws: What guidance may draw noise from; None likewise, and behind guidance.
        level: i32[W], index of the level that each frame has in its grid; None outside of a run.
    """

    index: Int[Array, ""]
    start: Int[Array, ""]
    write: Bool[Array | np.ndarray, " W"]
    frame: Int[Array, ""]
    moving: Bool[Array, " W"] | None = None
    draws: Draws | None = None
    level: Int[Array, " W"] | None = None


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
        values: f32[B, F, ...], or several such; 0 for frames that have not started.
    """

    values: PyTree

    def seen(self, row: Row, window: int) -> PyTree:
        """Returns what belongs to the frames that a row feeds."""
        return jax.tree.map(lambda leaf: in_window(leaf, row, window), self.values)


Denoiser = Callable[[Array, Call, PyTree], tuple[Denoised, PyTree]]
"""`(x, call, carry) -> (Denoised, carry)`: one evaluation of a network on the frames of one window.

`carry` is whatever the network remembers between calls (caches, the state of an
attention policy, momentum); None when it remembers nothing.
"""

JointDenoiser = Callable[
    [Mapping[str, Array], Mapping[str, Call], PyTree], tuple[Mapping[str, Denoised], PyTree]
]
"""A `Denoiser` of several modalities: one evaluation of a network on the windows of all."""

Predict = Callable[[Array, Call, PyTree], tuple[Array, PyTree]]
"""`(x, call, carry) -> (prediction, carry)`: a network with its conditions.

`call.t` and `call.t_next` are `process.model_time` of the levels.
"""


def make_denoiser(
    predict: Predict,
    process: Process | Mapping[str, Process],
    prediction: PredictionKind | Mapping[str, PredictionKind] = "velocity",
    condition: Shaped[Array, "#B _ ..."] | None = None,
) -> Denoiser:
    """Turns a network into a denoiser, of one value or of several modalities.

    Args:
        predict: The network with its parameters and conditions; told
            `process.model_time` of the levels. Its output may be of any float type.
        process: The corruption process that it was trained on.
        prediction: What it predicts.
        condition: Clean latents of all frames that a `conditioned` process leads to.
    """

    def split(process: Process, kind: PredictionKind, value: Values, x: Values, call: Call):
        return Denoised(*to_x0_eps(process, kind, value, x, call.t))

    def denoise(x: Any, call: Any, carry: PyTree) -> tuple[Any, PyTree]:
        value, carry = ask(predict, process, x, call, carry, condition)
        return each(split, every(process, x), every(prediction, x), value, x, call), carry

    return denoise


def ask(
    predict: Predict,
    process: Process | Mapping[str, Process],
    x: Values | Mapping[str, Array],
    call: Call | Mapping[str, Call],
    carry: PyTree,
    condition: Shaped[Array, "#B _ ..."] | None = None,
) -> tuple[Any, PyTree]:
    """Asks a network in the way that its process says, in training as in sampling.

    Of several modalities, latents and calls are dicts by name.

    Returns:
        Its prediction in float32, told `process.model_time` of the levels and fed `x`, with the
        condition and scaled where the process says so; and the next carry.

    Raises:
        ConfigError: If the process needs a condition and there is none.
    """
    shown = each(_shown, every(process, x), x, call, every(condition, x))
    value, carry = predict(each(itemgetter(0), shown), each(itemgetter(1), shown), carry)
    return each(lambda value: value.astype(jnp.float32), value), carry


def _shown(
    process: Process, x: Values, call: Call, condition: Shaped[Array, "#B _ ..."] | None
) -> tuple[Values, Call]:
    """Returns what a network is fed, and the times that it is told."""
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
    return fed, Call(process.model_time(t), process.model_time(call.t_next), call.row)


def in_window(values: Array, row: Row, window: int, axis: int = 1) -> Array:
    """Returns the frames of `values` that a row feeds; a single one is every frame's."""
    if values.shape[axis] in (1, window):
        return values
    return jax.lax.dynamic_slice_in_dim(values, row.start, window, axis=axis)
