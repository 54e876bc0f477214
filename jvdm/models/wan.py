"""WanDiT: the transformer of Wan 2.1, with a noise level for every frame.

Wan 2.1 (Wan Team, arXiv:2503.20314) as Diffusers' `WanTransformer3DModel` computes it. What
differs: levels are one per frame instead of one per clip (equal ones give the same bits), and
queries and keys have the features of a head in another order, its even ones before its odd ones,
so that `rotate` turns them. The weights are put in that order when they are read
(`jvdm.configs.families.wan`), and no sum over features notices it.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, Latents, NoiseLevels, PyTree, Tokens
from jvdm.attention import AttentionCall, Blocks, Dense, Policy
from jvdm.errors import ConfigError
from jvdm.features import layer_normalize
from jvdm.models.carry import Carry
from jvdm.models.conditions import Conditions
from jvdm.models.layers import Linear, RMSNorm, Rotary, gelu, rotate
from jvdm.models.modulation import gate, modulate
from jvdm.models.stack import Remat
from jvdm.models.transformer import Shared, Transformer, TransformerLayer
from jvdm.samplers import Call
from pallas_kernels import block_sparse_attention, dense_attention


class WanLayer(TransformerLayer):
    """Self-attention, cross-attention to the prompt, feed-forward; modulated per frame.

    What is added to the tokens is added in float32, as the reference does in any number type.
    """

    mlp_width: int
    cross_norm: bool
    """Whether tokens are normalised before they read the prompt."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F P D"], mine: tuple[Int[Array, ""], PyTree], shared: Shared
    ) -> tuple[Float[Array, "B F P D"], tuple[PyTree, Float[Array, "B L D"] | None]]:
        """Returns the tokens, the policy's next state of this layer, and what is collected.

        `mine` is the index of the layer and the policy's state of it.
        """
        index, state = mine
        width = x.shape[-1]
        vectors = self._vectors(nn.initializers.normal(width**-0.5), shared)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (vectors[:, :, i] for i in range(6))
        flat = (x.shape[0], x.shape[1] * x.shape[2], width)

        call = self._attention_call(index, shared)
        y = modulate(x, scale_a, shift_a, layer_normalize).astype(self.dtype).reshape(flat)
        y, state = self._attend(y, shared.rotary, state, call)
        x = (x + gate(y.reshape(x.shape), gate_a)).astype(self.dtype)

        y = x
        if self.cross_norm:
            norm = nn.LayerNorm(use_fast_variance=False, dtype=jnp.float32, name="cross_norm")
            y = norm(x).astype(self.dtype)
        x = x + self._read(y.reshape(flat), shared.text).reshape(x.shape)

        y = modulate(x, scale_m, shift_m, layer_normalize).astype(self.dtype)
        y = self._linear("down", width, gelu(self._linear("up", self.mlp_width, y)))
        x = (x + gate(y, gate_m)).astype(self.dtype)
        return x, (state, x.reshape(flat) if self.keep else None)

    def _attend(
        self, x: Tokens, rotary: Rotary, state: PyTree, call: AttentionCall
    ) -> tuple[Tokens, PyTree]:
        """Attention among video tokens."""
        q, k, v = self._heads("self", x, x)
        q = rotate(q, rotary).astype(self.dtype)
        k, v, mask, state = self.policy.attended(q, k, v, state, call)
        if mask is None and call.order is not None and call.order.is_padded:
            mask = Blocks(call.grid, call.order).everything()
        out = block_sparse_attention(q, k, v, mask)
        return self._linear("self_out", x.shape[-1], out.reshape(x.shape)), state

    def _read(self, x: Tokens, text: Float[Array, "B _ D"]) -> Tokens:
        """Video tokens read the prompt; padding, which is zero before its projection, too."""
        out = dense_attention(*self._heads("cross", x, text))
        return self._linear("cross_out", x.shape[-1], out.reshape(x.shape))

    def _heads(self, name: str, x: Tokens, other: Float[Array, "B _ D"]) -> list[Array]:
        """Returns queries of `x`, keys and values of `other`, `[B, L, N, E]` each.

        Queries and keys are normalised over all heads together.
        """
        inputs = {"q": x, "k": other, "v": other}
        q, k, v = (self._linear(f"{name}_{part}", x.shape[-1], y) for part, y in inputs.items())
        q, k = RMSNorm(name=f"{name}_q_norm")(q), RMSNorm(name=f"{name}_k_norm")(k)
        return [y.reshape(*y.shape[:2], -1, self.head_dim) for y in (q, k, v)]

    def _linear(self, name: str, size: int, x: Float[Array, "*batch I"]) -> Array:
        return Linear((size,), self.dtype, bias=True, name=name)(x)[0]


class WanDiT(Transformer, nn.Module):
    """Text to video with the network of Wan 2.1; the defaults are those of its 1.3B model.

    The 14B model has `width` 5120, `depth` 40 and `mlp_width` 13824. Parameters are float32,
    products run in `dtype`; sums, norms, modulation and the embedding of levels in float32.

    Attributes:
        width: Features of a token.
        depth: Layers.
        latent_channels: Channels of the latents.
        head_dim: Features of a head.
        mlp_width: Hidden features of the feed-forward part of a layer.
        patch: Cells of a token's side.
        frequencies: Pairs of sinusoids that a level is told in.
        rotary_base: Ratio of the slowest to the fastest wavelength of positions.
        cross_norm: Whether tokens are normalised before they read the prompt.
        policy: Who attends to whom.
        collect: Layers whose tokens are collected.
        remat: What the backward pass computes again.
        unroll: Layers per iteration of the compiled loop.
        dtype: Number type of products.
    """

    width: int = 1536
    depth: int = 30
    latent_channels: int = 16
    head_dim: int = 128
    mlp_width: int = 8960
    patch: int = 2
    frequencies: int = 128
    rotary_base: float = 1e4
    cross_norm: bool = True
    policy: Policy = Dense()
    collect: tuple[int, ...] = ()
    remat: Remat = "matmuls"
    unroll: int = 1
    dtype: str = "bfloat16"

    ports: ClassVar[tuple[str, ...]] = ("text",)
    wide: ClassVar[tuple[str, ...]] = ("time_hidden", "time_out")
    """Parts whose kernels stay float32 in every number type."""

    @property
    def rotary_axes(self) -> tuple[int, int, int]:
        """Features of a head that turn with time, row and column."""
        side = self.head_dim // 6 * 2
        return (self.head_dim - 2 * side, side, side)

    @nn.compact
    def __call__(
        self, x: Latents, call: Call, conditions: Conditions, carry: Carry | None = None
    ) -> tuple[Latents, Carry]:
        """Predicts the velocity `noise - clean` of every latent.

        Args:
            x: Noisy latents.
            call: Level of each frame in thousandths, 1000 noise .. 0 clean, as the process of
                the family tells it (`whole_thousandths`), and the row of the run.
            conditions: States of the prompt, whose padding is zero and is read like the rest;
                the published models know 512 of them.
            carry: What the previous call returned, at first `start(...)`; None for a single
                call. Features are collected in a single call, and where it has some.

        Returns:
            The prediction in float32, and the carry for the next call.

        Raises:
            ShapeError: If the latents do not divide into patches.
            ConfigError: If there is no prompt, a condition has no port in this model, or the
                policy cannot run on a grid of these sizes.
        """
        conditions.check(self.ports)
        if conditions.text is None:
            fix = "give states of the empty prompt"
            raise ConfigError("no prompt was given", "every layer of Wan reads one", fix)
        batch, frames, height, width, _ = x.shape
        tokens = self._linear("patch_in", self.width, self._patches(x))
        way = self._way(x.shape[:4], call, carry)

        time = self._time(call.t)
        told = self._linear("modulation", 6 * self.width, nn.silu(time))
        told = told.reshape(batch, frames, 6, self.width)
        hidden = gelu(self._linear("text_hidden", self.width, conditions.text.states))
        text = self._linear("text_out", self.width, hidden)
        shared = Shared(told, way.rotary, text, call.row, call.t)
        made = {"mlp_width": self.mlp_width, "cross_norm": self.cross_norm}
        tokens, carry = self._layers(WanLayer, made, tokens, way, shared)

        table = self.param(
            "head_modulation", nn.initializers.normal(self.width**-0.5), (2, self.width)
        )
        shift, scale = (time.astype(jnp.float32) + table[i][None, None] for i in range(2))
        y = modulate(tokens, scale, shift, layer_normalize).astype(self.dtype)
        y = self._linear("patch_out", self.patch**2 * self.latent_channels, y)
        return self._unpatched(y, height, width), carry

    def _time(self, t: NoiseLevels) -> Float[Array, "B F D"]:
        """Returns the embedding of levels in thousandths: sinusoids, then two layers."""
        # Exponents in float32 and their exponential rounded once, as the reference has them.
        exponents = np.float32(-np.log(1e4)) * np.arange(self.frequencies, dtype=np.float32)
        rates = np.exp(np.float64(exponents / np.float32(self.frequencies))).astype(np.float32)
        angles = t[..., None] * rates[None, None]
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        (x,) = Linear((self.width,), "float32", bias=True, name="time_hidden")(x)
        (x,) = Linear((self.width,), "float32", bias=True, name="time_out")(nn.silu(x))
        return x.astype(self.dtype)

    def _linear(self, name: str, size: int, x: Float[Array, "*batch I"]) -> Array:
        return Linear((size,), self.dtype, bias=True, name=name)(x)[0]
