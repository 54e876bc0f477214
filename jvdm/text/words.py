"""Word encoder: token ids of a small vocabulary to states that a video model reads."""

import flax.linen as nn
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, TokenIds, Tokens
from jvdm.errors import ShapeError
from pallas_kernels import dense_attention


class WordEncoder(nn.Module):
    """A small bidirectional transformer over words, trained with the video model.

    Sentences have free order, so what belongs to what (the red one is the ball)
    must be worked out here before the video model reads it.
    """

    vocabulary: int
    max_tokens: int = 64
    width: int = 256
    depth: int = 4
    head_dim: int = 64
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, ids: TokenIds) -> tuple[Tokens, Int[Array, " B"]]:
        """Returns states `[B, L, width]` and the number of tokens that count, `[B]`.

        Raises:
            ShapeError: If `ids` is longer than `max_tokens`.
        """
        if ids.shape[1] > self.max_tokens:
            raise ShapeError(
                f"{ids.shape[1]} tokens per prompt", f"this encoder takes {self.max_tokens}"
            )
        lengths = jnp.maximum(jnp.sum(ids != 0, -1), 1)
        words = nn.Embed(self.vocabulary, self.width, name="words")(ids)
        init = nn.initializers.normal(0.5)
        places = self.param("places", init, (self.max_tokens, self.width))
        x = (words + places[None, : ids.shape[1]]).astype(self.dtype)
        for index in range(self.depth):
            x = _EncoderLayer(self.head_dim, self.dtype, name=f"layers_{index}")(x, lengths)
        x = nn.RMSNorm(name="norm", dtype=self.dtype)(x)
        return x, lengths


class _EncoderLayer(nn.Module):
    head_dim: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B L D"]:
        width = x.shape[-1]
        dense = {"use_bias": False, "dtype": self.dtype}
        y = nn.RMSNorm(name="mix_norm", dtype=self.dtype)(x)
        q, k, v = (
            nn.Dense(width, name=name, **dense)(y).reshape(*x.shape[:2], -1, self.head_dim)
            for name in ("q", "k", "v")
        )
        mixed = dense_attention(q, k, v, kv_lengths=lengths).reshape(x.shape)
        x = x + nn.Dense(width, kernel_init=_small, name="out", **dense)(mixed)
        y = nn.gelu(nn.Dense(4 * width, name="up", **dense)(nn.RMSNorm(name="mlp_norm")(x)))
        return x + nn.Dense(width, kernel_init=_small, name="down", **dense)(y)


_small = nn.initializers.variance_scaling(0.09, "fan_in", "normal")
