"""T5 and UMT5: the text encoders of LTX-Video and of Wan.

Raffel et al., arXiv:1910.10683; Shazeer, arXiv:2002.05202 (the gated feed-forward part of T5 1.1);
Chung et al., arXiv:2304.09151 (UMT5). It computes what Transformers' `T5EncoderModel` and
`UMT5EncoderModel` do; states after the end of a prompt are zero, as in the pipelines of Wan.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, TokenIds, Tokens
from jvdm.text.pieces import PAD, PieceTokenizer

_Shared = tuple[Int[np.ndarray, "L L"], Int[Array, " B"] | None, Float[Array, "P N"] | None]
"""What all layers are given: the bucket of every pair of tokens, the lengths of prompts where
padding is not read, and the table of relative positions where they share one."""


class T5(nn.Module):
    """Encoder of prompts; the defaults are those of T5-v1.1-XXL.

    Attributes:
        tokenizer: Turns prompts into ids.
        vocabulary: Number of ids.
        width: Features of a state.
        depth: Layers.
        heads: Attention heads of a layer.
        head_dim: Features of a head.
        mlp_width: Hidden features of the feed-forward part of a layer.
        buckets: Entries of a table of relative positions.
        farthest: Distance from which on all tokens are in one bucket.
        one_table: Whether all layers share a table of relative positions (T5), or each has its
            own (UMT5).
        reads_padding: Whether tokens attend to the padding after a prompt, as they do where a
            pipeline gives the encoder no mask (LTX-Video).
        dtype: Number type of products; norms and softmax are float32.
    """

    tokenizer: PieceTokenizer
    vocabulary: int = 32128
    width: int = 4096
    depth: int = 24
    heads: int = 64
    head_dim: int = 64
    mlp_width: int = 10240
    buckets: int = 32
    farthest: int = 128
    one_table: bool = True
    reads_padding: bool = False
    dtype: str = "bfloat16"

    def read(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "B L"], tuple[str, ...]]:
        """Turns prompts into what the encoder takes, on the host.

        Returns:
            Token ids, and what the user should know: which end of a prompt is left out.

        Raises:
            WeightsError: If the tokenizer cannot be read.
        """
        return self.tokenizer.encode_batch(prompts)

    @nn.compact
    def __call__(self, ids: TokenIds) -> tuple[Tokens, Int[Array, " B"]]:
        """Returns states `[B, L, width]` and the number of tokens of each prompt, `[B]`.

        States after the end of a prompt are exactly zero.
        """
        lengths = jnp.sum(ids != PAD, -1)
        # Called a kernel because it is read in `dtype` alone: it has a fifth of all parameters.
        words = self.param("kernel", nn.initializers.normal(1.0), (self.vocabulary, self.width))
        x = words[ids].astype(self.dtype)
        layers = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.depth,
            check_constancy_invariants=self.is_initializing(),  # as `layer_stack` has it
        )
        sizes = (self.heads, self.head_dim, self.mlp_width, self.buckets)
        table = _table(self) if self.one_table else None
        near = relative_buckets(ids.shape[1], self.buckets, self.farthest)
        shared = (near, None if self.reads_padding else lengths, table)
        x, _ = layers(*sizes, self.dtype, name="layers")(x, shared)
        x = _norm("norm", self.dtype)(x)
        counts = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        return jnp.where(counts[..., None], x, 0), lengths


class _Layer(nn.Module):
    heads: int
    head_dim: int
    mlp_width: int
    buckets: int
    dtype: str

    @nn.compact
    def __call__(self, x: Tokens, shared: _Shared) -> tuple[Tokens, None]:
        near, lengths, table = shared
        y = _norm("mix_norm", self.dtype)(x)
        q, k, v = (self._dense(name, self.heads * self.head_dim, y) for name in "qkv")
        q, k, v = (part.reshape(*x.shape[:2], self.heads, self.head_dim) for part in (q, k, v))
        table = _table(self) if table is None else table
        bias = table.astype(self.dtype)[near].transpose(2, 0, 1)[None]
        mixed = jax.nn.dot_product_attention(
            q, k, v, bias, scale=1.0, key_value_seq_lengths=lengths
        )
        x = x + self._dense("out", x.shape[-1], mixed.reshape(*x.shape[:2], -1))
        y = _norm("mlp_norm", self.dtype)(x)
        hidden = nn.gelu(self._dense("gate", self.mlp_width, y))
        hidden = hidden * self._dense("up", self.mlp_width, y)
        return x + self._dense("down", x.shape[-1], hidden), None

    def _dense(self, name: str, size: int, x: Float[Array, "B L I"]) -> Float[Array, "B L O"]:
        return nn.Dense(size, use_bias=False, dtype=self.dtype, name=name)(x)


def _table(of: T5 | _Layer) -> Float[Array, "P N"]:
    """Returns what relative positions add to the scores of every head, bucket by bucket."""
    return of.param("places", nn.initializers.normal(1.0), (of.buckets, of.heads))


def _norm(name: str, dtype: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=1e-6, dtype=dtype, name=name)


def relative_buckets(length: int, count: int, farthest: int) -> Int[np.ndarray, "L L"]:
    """Returns in which bucket each query (row) has each key (column).

    Half of the buckets are for keys after the query. A quarter are single distances, a quarter
    grow with the logarithm of the distance, up to `farthest` (Raffel et al., section 2.1).
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half, exact = count // 2, count // 4
    far = np.abs(distance)
    growth = np.log(np.maximum(far, exact) / exact) / np.log(farthest / exact)
    coarse = np.minimum(exact + (growth * (half - exact)).astype(int), half - 1)
    return half * (distance > 0) + np.where(far < exact, far, coarse)
