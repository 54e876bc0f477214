"""Operations on features that networks of different packages share."""

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float


def rms_normalize(
    x: Float[Array, "*batch D"], epsilon: float = 1e-6, apart: bool = False
) -> Float[Array, "*batch D"]:
    """Divides by the root mean square of the last axis, computed in float32.

    Args:
        x: What is divided.
        epsilon: Added to the mean square.
        apart: Whether the squares are summed in a pass of their own, so that XLA divides where the
            quotient is read. Else it writes that, to be read again by what cannot be part of a
            norm, as a rotation of heads.
    """
    y = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)
    return y * (jax.lax.optimization_barrier(factor) if apart else factor)


def layer_normalize(x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """Subtracts the mean of the last axis and divides by its deviation, in float32."""
    y = x.astype(jnp.float32)
    return rms_normalize(y - jnp.mean(y, -1, keepdims=True))


def fold(x: Float[Array, "B F H W C"], size: int) -> Float[Array, "B F h w c"]:
    """Moves squares of `size` x `size` cells into channels."""
    batch, frames, height, width, channels = x.shape
    height, width = height // size, width // size
    x = x.reshape(batch, frames, height, size, width, size, channels)
    x = x.transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(batch, frames, height, width, size * size * channels)


def unfold(x: Float[Array, "B F H W C"], size: int) -> Float[Array, "B F h w c"]:
    """Inverse of `fold`."""
    batch, frames, height, width, channels = x.shape
    channels //= size * size
    x = x.reshape(batch, frames, height, width, size, size, channels)
    x = x.transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(batch, frames, height * size, width * size, channels)


def sinusoids(x: Float[Array, "*batch"], frequencies: int) -> Float[Array, "*batch _"]:
    """Returns cosines, then sines, of numbers at frequencies from 1 down to nearly 1e-4.

    As published networks are told noise levels in thousandths (Diffusers' `get_timestep_embedding`
    with `flip_sin_to_cos`, without a shift).
    """
    # Exponents in float32 and their exponential rounded once, as the reference has them.
    exponents = np.float32(-np.log(1e4)) * np.arange(frequencies, dtype=np.float32)
    rates = np.exp(np.float64(exponents / np.float32(frequencies))).astype(np.float32)
    angles = x[..., None] * rates.reshape((1,) * x.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
