"""A few codes for each latent frame: what a language model can foretell of a video.

The latents of a frame are cut into squares of cells, and each becomes the nearest vector of a small
table (VQ-VAE, van den Oord et al., arXiv:1711.00937; over latents of an autoencoder in ARLON,
arXiv:2410.20502). Codes of a frame are of that frame alone, so that films of any length have them.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Latents
from jvdm.features import fold, unfold
from jvdm.models.layers import FeedForward, Linear, RMSNorm

_SHARP = 20.0  # inverse temperature of the shares of codes, in squared distances on the unit sphere
_COMMITTED = 0.25  # weight of what draws vectors to their codes (van den Oord et al., equation 3)
_SPREAD = 0.1  # weight of the entropy of codes, in nats


class Coded(NamedTuple):
    """What training knows of codes.

    Attributes:
        codes: Those of every square.
        rebuilt: The latents that they say, without a gradient.
        loss: How far that is from the latents, and what keeps codes in use.
        used: Codes in use, as the exponential of their entropy.
    """

    codes: Int[Array, "B F P"]
    rebuilt: Latents
    loss: Float[Array, ""]
    used: Float[Array, ""]


class LatentCodes(nn.Module):
    """Squares of latent cells to codes and back.

    Vectors and codes have length 1 and few numbers (Yu et al., arXiv:2110.04627, section 3.2), and
    training is asked to use all codes alike (the entropy of Yu et al., arXiv:2310.05737): no code
    dies, where the paper restarts them.

    Attributes:
        channels: Numbers of a latent cell.
        codes: How many codes there are.
        size: Numbers of a code.
        cells: Latent cells along a side of a square.
        width: Features inside.
        dtype: Number type of products.
    """

    channels: int
    codes: int = 256
    size: int = 8
    cells: int = 2
    width: int = 96
    dtype: str = "bfloat16"

    def setup(self) -> None:
        """Makes both ways and the table."""
        self.squares_in = Linear((self.width,), self.dtype, bias=True)
        self.think_in, self.norm_in = FeedForward(2, self.dtype), RMSNorm()
        self.vectors = Linear((self.size,), self.dtype)
        init = nn.initializers.normal(1.0)
        self.table = self.param("table", init, (self.codes, self.size))
        self.codes_in = Linear((self.width,), self.dtype, bias=True)
        self.think_out, self.norm_out = FeedForward(2, self.dtype), RMSNorm()
        self.squares_out = Linear((self.cells**2 * self.channels,), self.dtype, bias=True)

    def __call__(self, latents: Latents) -> Coded:
        """Returns the codes of latents, and what training needs beside them."""
        vectors = self._vectors(latents)
        near = self._near(vectors)
        codes = jnp.argmax(near, -1)
        chosen = self._unit_table()[codes]
        straight = vectors + jax.lax.stop_gradient(chosen - vectors)
        rebuilt = self._latents(straight, latents.shape)
        shares = nn.softmax(_SHARP * 2.0 * near).reshape(-1, self.codes)
        mean = shares.mean(0)
        spread = -jnp.sum(mean * jnp.log(mean + 1e-9))
        hard = jnp.bincount(codes.reshape(-1), length=self.codes) / codes.size
        used = jnp.exp(-jnp.sum(hard * jnp.log(hard + 1e-9)))
        drawn = jnp.mean(jnp.square(vectors - jax.lax.stop_gradient(chosen)))
        moved = jnp.mean(jnp.square(jax.lax.stop_gradient(vectors) - chosen))
        away = jnp.mean(jnp.square(rebuilt - latents))
        loss = away + self.size * (_COMMITTED * drawn + moved) - _SPREAD * spread
        said = jax.lax.stop_gradient(self._latents(jax.lax.stop_gradient(chosen), latents.shape))
        return Coded(codes, said, loss, used)

    def encode(self, latents: Latents) -> Int[Array, "B F P"]:
        """Returns the codes of latents, square after square in raster order."""
        return jnp.argmax(self._near(self._vectors(latents)), -1)

    def decode(self, codes: Int[Array, "B F P"], height: int, width: int) -> Latents:
        """Returns the latents that codes say, of frames of so many cells."""
        shape = (*codes.shape[:2], height, width, self.channels)
        return self._latents(self._unit_table()[codes], shape)

    def _vectors(self, latents: Latents) -> Float[Array, "B F P E"]:
        squares = fold(latents.astype(jnp.float32), self.cells)
        squares = squares.reshape(*squares.shape[:2], -1, squares.shape[-1])
        (y,) = self.squares_in(squares)
        y = y + self.think_in(self.norm_in(y))
        return _unit(self.vectors(y)[0])

    def _latents(self, vectors: Float[Array, "B F P E"], shape: tuple[int, ...]) -> Latents:
        (y,) = self.codes_in(vectors)
        y = y + self.think_out(self.norm_out(y))
        squares = self.squares_out(y)[0].astype(jnp.float32)
        rows, columns = shape[2] // self.cells, shape[3] // self.cells
        return unfold(squares.reshape(*shape[:2], rows, columns, -1), self.cells)

    def _near(self, vectors: Float[Array, "B F P E"]) -> Float[Array, "B F P codes"]:
        return jnp.einsum("bfpe,ce->bfpc", vectors, self._unit_table())

    def _unit_table(self) -> Float[Array, "codes E"]:
        return _unit(self.table)


def _unit(x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)
