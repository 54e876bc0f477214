"""Per-frame modulation: every latent frame scales, shifts and gates its own tokens.

The backward pass sums over the tokens of a frame. Left to itself, XLA makes that
axis the fastest one of every activation nearby and transposes them back and
forth, a tenth of a training step on an H200. As a product with ones, frame by frame,
the sum reads each activation once, as it lies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float
from jvdm.features import rms_normalize
from jvdm.models.layers import RMSNorm
from pallas_kernels import gate_gradients, residual_norm, serves_residual_norm


def modulate(
    x: Float[Array, "B F P D"],
    scale: Float[Array, "B F D"],
    shift: Float[Array, "B F D"],
    normalize: Callable[[Array], Array] = rms_normalize,
) -> Float[Array, "B F P D"]:
    """Normalises tokens, then scales and shifts them by their frame's vectors.

    Reference: adaLN of Peebles and Xie, arXiv:2212.09748.
    """
    return _scale_shift(normalize(x), scale, shift)


@jax.custom_vjp
def _scale_shift(normal: Array, scale: Array, shift: Array) -> Array:
    """Computes `normal (1 + scale) + shift` in float32; the dtype is that of `scale`."""
    factor = 1.0 + scale[:, :, None].astype(jnp.float32)
    y = normal * factor + shift[:, :, None].astype(jnp.float32)
    return y.astype(scale.dtype)


def _scale_shift_forward(normal: Array, scale: Array, shift: Array) -> tuple[Array, tuple]:
    return _scale_shift(normal, scale, shift), (normal, scale)


def _scale_shift_backward(saved: tuple, gradient: Array) -> tuple[Array, Array, Array]:
    normal, scale = saved
    wide = gradient.astype(jnp.float32)
    to_normal = wide * (1.0 + scale[:, :, None].astype(jnp.float32))
    to_scale = _sum_tokens((wide * normal).astype(scale.dtype)).astype(scale.dtype)
    return to_normal, to_scale, _sum_tokens(gradient).astype(scale.dtype)


_scale_shift.defvjp(_scale_shift_forward, _scale_shift_backward)


def residual_modulate(
    x: Float[Array, "B F P D"],
    scale: Float[Array, "B F D"],
    shift: Float[Array, "B F D"],
    residual: Float[Array, "B F P D"] | None = None,
    gates: Float[Array, "B F D"] | None = None,
) -> tuple[Float[Array, "B F P D"], Float[Array, "B F P D"]]:
    """Returns `s = residual + gates x`, to be read in its place, and `s` modulated."""
    if serves_residual_norm(x):
        return residual_norm(x, 1.0 + scale.astype(jnp.float32), shift, residual, gates)
    s = _gated_sum(x, residual, gates)
    return s, modulate(s, scale, shift)


def residual_rms_norm(
    norm: RMSNorm,
    x: Float[Array, "B F P D"],
    residual: Float[Array, "B F P D"],
    gates: Float[Array, "B F D"],
) -> tuple[Float[Array, "B F P D"], Float[Array, "B F P D"]]:
    """Returns `s = residual + gates x`, to be read in its place, and `norm(s)`."""
    if serves_residual_norm(x):
        gain = norm.weights(x.shape[-1])[None, None]
        return residual_norm(x, gain, None, residual, gates)
    s = _gated_sum(x, residual, gates)
    return s, norm(s)


def _gated_sum(x: Array, residual: Array | None, gates: Array | None) -> Array:
    x = x if gates is None else gate(x, gates)
    return x if residual is None else residual + x


@jax.custom_vjp
def gate(x: Float[Array, "B F P D"], vector: Float[Array, "B F D"]) -> Float[Array, "B F P D"]:
    """Multiplies every token by its frame's vector."""
    return x * vector[:, :, None]


def _gate_forward(x: Array, vector: Array) -> tuple[Array, tuple[Array, Array]]:
    return gate(x, vector), (x, vector)


def _gate_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, vector = saved
    if serves_residual_norm(x):
        to_x, to_vector = gate_gradients(gradient, x, vector)
        return to_x, to_vector.astype(vector.dtype)
    to_x = (gradient * vector[:, :, None]).astype(x.dtype)  # JAX hands on whatever type it gets
    return to_x, _sum_tokens(gradient * x).astype(vector.dtype)


gate.defvjp(_gate_forward, _gate_backward)


def _sum_tokens(x: Float[Array, "B F P D"]) -> Float[Array, "B F D"]:
    """Sums over the tokens of each frame, in float32."""
    b, f, p, d = x.shape
    if p == 1:
        return x[:, :, 0].astype(jnp.float32)
    # Eight equal rows: as a sum, or a product with one row, XLA reduces over a strided axis.
    ones = jnp.ones((b * f, 8, p), x.dtype)
    frames = x.reshape(b * f, p, d)
    sums = jnp.einsum("nrp,npd->nrd", ones, frames, preferred_element_type=jnp.float32)
    return sums[:, 0].reshape(b, f, d)
