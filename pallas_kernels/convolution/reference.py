"""What a convolution of videos is given, and its results as XLA computes them."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

SMALLEST = 1e-24  # sum of squares of the channels of a cell: no division by zero


class Inputs(NamedTuple):
    """Arrays of a call of `causal_conv`."""

    x: Float[Array, "B T H W C"]
    kernel: Float[Array, "3 3 3 C D"]
    bias: Float[Array, " D"]
    before: Float[Array, "B 2 H W C"] | None = None
    added: Float[Array, "B T H W D"] | None = None
    gain: Float[Array, " D"] | None = None


def valid_conv(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "t a b C D"],
    strides: tuple[int, int, int] = (1, 1, 1),
    around: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
) -> Float[Array, "B F h w D"]:
    """Convolves frames, with zeros `around` their rows and columns and none in time.

    On CPUs the frames that one tap after the other sees are stacked as channels of a convolution
    in space alone, which takes a third to a half of the time of one in three axes. On NVIDIA GPUs
    a product serves what sees few channels: XLA would try dozens of cuDNN's convolutions, each
    compiled, whenever a program is.
    """
    (taps, *sides), frames, step = kernel.shape[:3], x.shape[1], strides[0]
    stacked = math.prod(kernel.shape[:4])  # channels that a result is of
    few = math.prod(kernel.shape[:3]) == 1 or stacked <= 2 * kernel.shape[-1]

    def whole(x: Array, kernel: Array) -> Array:
        axes, padding = ("NDHWC", "DHWIO", "NDHWC"), ((0, 0), *around)
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=axes)

    def folded(x: Array, kernel: Array) -> Array:
        ends = range(frames - taps + 1, frames + 1)
        x = jnp.concatenate([x[:, tap : ends[tap] : step] for tap in range(taps)], -1)
        kernel = jnp.moveaxis(kernel, 0, 2).reshape(*sides, -1, kernel.shape[-1])
        flat, axes = x.reshape(-1, *x.shape[2:]), ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(flat, kernel, strides[1:], around, dimension_numbers=axes)
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def multiplied(x: Array, kernel: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), *around, (0, 0)))
        ends = (n - taps + 1 for n, taps in zip(x.shape[1:4], kernel.shape, strict=False))
        axes = [
            [slice(tap, end + tap, by) for tap in range(taps)]
            for end, by, taps in zip(ends, strides, kernel.shape, strict=False)
        ]
        x = jnp.concatenate([x[:, *seen] for seen in itertools.product(*axes)], -1)
        return x @ kernel.reshape(stacked, -1)

    gpu = multiplied if few else whole
    return lax.platform_dependent(x, kernel, cpu=folded, cuda=gpu, default=whole)


def normalized(x: Float[Array, "*axes C"], gain: Float[Array, " C"]) -> Float[Array, "*axes C"]:
    """Divides by the root mean square of the channels of a cell and scales them, in float32."""
    wide = x.astype(jnp.float32)
    power = jnp.maximum(jnp.sum(wide * wide, -1, keepdims=True), SMALLEST)
    y = wide * lax.rsqrt(power) * x.shape[-1] ** 0.5
    return (y * gain.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def activated(
    x: Float[Array, "*axes C"], gain: Float[Array, " C"], alone: bool
) -> Float[Array, "*axes C"]:
    """Returns SiLU of `normalized`; cells are one axis if they are `alone` on a device.

    For a GPU, XLA tries tiles of all axes.
    """
    cells = x.reshape(-1, x.shape[-1]) if alone else x
    return jax.nn.silu(normalized(cells, gain)).reshape(x.shape)


def convolve(inputs: Inputs, plain: bool) -> tuple[Float[Array, "B T H W D"], ...]:
    """Returns the sum, if `plain`, and what is made of it with a gain."""
    x, kernel, bias, before, added, gain = inputs
    dtype, ago = x.dtype, ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0))
    x = jnp.pad(x, ago) if before is None else jnp.concatenate([before.astype(dtype), x], 1)
    y = valid_conv(x, kernel.astype(dtype))
    y += bias.astype(dtype)[None, None, None, None]
    y = y if added is None else y + added.astype(dtype)
    active = () if gain is None else (activated(y, gain, alone=False),)
    return ((y,) if plain else ()) + active
