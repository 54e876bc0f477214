"""Word encoder: token ids of a small vocabulary to states that a video model reads."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Int, TokenIds, Tokens
from jvdm.errors import ShapeError
from jvdm.parallel import constrain
from jvdm.text.tokenizer import WordTokenizer
from pallas_kernels import dense_attention


class WordEncoder(nn.Module):
    """A small bidirectional transformer over words, trained with the video model.

    Sentences have free order, so what belongs to what (the red one is the ball)
    must be worked out here before the video model reads it.
    """

    tokenizer: WordTokenizer = WordTokenizer()
    width: int = 256
    depth: int = 4
    head_dim: int = 64
    dtype: str = "bfloat16"

    def read(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "B L"], tuple[str, ...]]:
        """Turns prompts into what the encoder takes, on the host.

        Returns:
            Token ids, and what the user should know of words that are not in the vocabulary.

        Raises:
            ConfigError: If a prompt is too long.
        """
        ids, unknown = self.tokenizer.encode_batch(prompts)
        words = sorted({word for entry in unknown for word in entry})
        named = ", ".join(repr(word) for word in words)
        note = f"the model does not know {named} and reads every such word alike"
        return ids, (note,) if words else ()

    @nn.compact
    def __call__(self, ids: TokenIds) -> tuple[Tokens, Int[Array, " B"]]:
        """Returns states `[B, L, width]` and the number of tokens that count, `[B]`.

        Raises:
            ShapeError: If `ids` is longer than the tokenizer makes them.
        """
        if ids.shape[1] > self.tokenizer.max_tokens:
            raise ShapeError(
                f"{ids.shape[1]} tokens per prompt",
                f"this encoder takes {self.tokenizer.max_tokens}",
            )
        lengths = jnp.maximum(jnp.sum(ids != 0, -1), 1)
        words = nn.Embed(len(self.tokenizer.vocabulary), self.width, name="words")(ids)
        words = constrain(words, "batch")
        init = nn.initializers.normal(0.5)
        places = self.param("places", init, (self.tokenizer.max_tokens, self.width))
        x = (words + places[None, : ids.shape[1]]).astype(self.dtype)
        for index in range(self.depth):
            x = _EncoderLayer(self.head_dim, self.dtype, name=f"layers_{index}")(x, lengths)
        x = nn.RMSNorm(name="norm", dtype=self.dtype)(x)
        return x, lengths


class _EncoderLayer(nn.Module):
    head_dim: int
    dtype: str

    @nn.compact
    def __call__(self, x: Tokens, lengths: Int[Array, " B"]) -> Tokens:
        width = x.shape[-1]
        dense = {"use_bias": False, "dtype": self.dtype}
        y = nn.RMSNorm(name="mix_norm", dtype=self.dtype)(x)
        q, k, v = (
            nn.Dense(width, name=name, **dense)(y).reshape(*x.shape[:2], -1, self.head_dim)
            for name in ("q", "k", "v")
        )
        mixed = dense_attention(q, k, v, kv_lengths=lengths).reshape(x.shape)
        x = constrain(x + nn.Dense(width, kernel_init=_small, name="out", **dense)(mixed), "batch")
        y = nn.gelu(nn.Dense(4 * width, name="up", **dense)(nn.RMSNorm(name="mlp_norm")(x)))
        return constrain(x + nn.Dense(width, kernel_init=_small, name="down", **dense)(y), "batch")


_small = nn.initializers.variance_scaling(0.09, "fan_in", "normal")
