"""Convolution of videos, causal in time, with what a network does to its result."""

import functools
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from pallas_kernels.attention.kernel import KernelUnavailable
from pallas_kernels.attention.planned import backend, is_planned
from pallas_kernels.convolution import tiles
from pallas_kernels.convolution.reference import Inputs, convolve

Implementation = Literal["xla", "mosaic_gpu"]


def causal_conv(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "3 3 3 C D"],
    bias: Float[Array, " D"],
    before: Float[Array, "B 2 H W C"] | None = None,
    *,
    added: Float[Array, "B T H W D"] | None = None,
    gain: Float[Array, " D"] | None = None,
    plain: bool = True,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T H W D"], ...]:
    """Convolves frames with themselves and the two before, and the cells around; outside is zero.

    Args:
        x: Frames.
        kernel: Weights of taps in time, rows and columns; the last in time is of the frame itself.
        bias: Added to the result.
        before: The two frames before; None where a video starts, which are zeros.
        added: Added to the result too.
        gain: If given, the sum divided by the root mean square of the channels of a cell, times
            this, is passed through SiLU: the last of the results.
        plain: Whether the sum itself is one, the first.
        implementation: `mosaic_gpu` is for H100 and H200, bfloat16 and some sizes (`refusal`); it
            sums in float32 up to the end, and reads `before` where it lies. `xla` runs anywhere.
            None chooses the first where it can serve the call.

    Returns:
        One or two arrays in the dtype of `x`.

    Raises:
        ValueError: If neither result is asked for.
        KernelUnavailable: If the asked implementation cannot serve the call.

    Reference:
        The causal convolution of Wan's autoencoder, arXiv:2503.20314, section 4.1.1.
    """
    if not plain and gain is None:
        raise ValueError("no result is asked for: give a gain, or leave plain=True")
    reason = refusal(x, kernel.shape[-1])
    if implementation == "mosaic_gpu" and reason:
        raise KernelUnavailable(f"mosaic_gpu: {reason}; use implementation='xla'")
    inputs = Inputs(x, kernel, bias, before, added, gain)
    return convolve(inputs, plain) if implementation == "xla" or reason else _served(plain, inputs)


def refusal(x: Any, features: int) -> str:
    """Returns why the kernel for Hopper cannot serve a call; empty if it can.

    Args:
        x: Frames; shape and dtype suffice.
        features: Channels of the results.
    """
    if is_planned():
        return "the GPU is planned for, and need not be here"
    if backend() != "gpu":
        return f"the default device is {backend()}, not gpu"
    from pallas_kernels.attention.mosaic_gpu import MosaicGPU

    return MosaicGPU().refusal_of_device() or tiles.refusal(x, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _served(plain: bool, inputs: Inputs) -> tuple[Array, ...]:
    from pallas_kernels.convolution import mosaic_gpu  # when it is first asked for

    return mosaic_gpu.causal_conv(inputs, plain, _processors())


def _processors() -> int:
    return jax.devices()[0].core_count


def _forward(plain: bool, inputs: Inputs) -> tuple[tuple[Array, ...], Inputs]:
    return _served(plain, inputs), inputs


def _backward(plain: bool, inputs: Inputs, slopes: tuple[Array, ...]) -> tuple[Inputs]:
    return jax.vjp(lambda inputs: convolve(inputs, plain), inputs)[1](slopes)


_served.defvjp(_forward, _backward)
