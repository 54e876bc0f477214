"""AdaLN-single transformers: one product tells all layers the level, and each has a table.

Chen et al., PixArt-alpha, arXiv:2310.00426, section 2.3; the form of Wan and of LTX-Video. What
differs from their references: levels are one per frame instead of one per clip or token (equal
ones give the same bits), and queries and keys have the features of a head in another order, its
even ones before its odd ones, so that `rotate` turns them. The weights are put in that order when
they are read (`jvdm.configs.families`), and no sum over features notices it.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Latents, NoiseLevels, PyTree, Tokens
from jvdm.attention import AttentionCall, Dense, Policy
from jvdm.errors import ConfigError
from jvdm.features import layer_normalize, rms_normalize, sinusoids
from jvdm.models.attention import attend, gated, read_prompt
from jvdm.models.carry import Carry
from jvdm.models.conditions import Conditions, PictureStates, TextStates
from jvdm.models.layers import Linear, RMSNorm, Rotary, gelu, rotate
from jvdm.models.modulation import gate, modulate
from jvdm.models.stack import Remat
from jvdm.models.step_cache import StepCache
from jvdm.models.transformer import Shared, Transformer, TransformerLayer
from jvdm.parallel import constrain, read
from jvdm.parallel.activations import used
from jvdm.samplers import Call


class PromptHeads(nn.Module):
    """Keys and values of the states of a prompt; keys are normalised over all heads together."""

    head_dim: int
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, states: Float[Array, "B L D"]) -> tuple[Array, Array]:
        """Returns both, `[B, L, N, E]`."""
        size = (states.shape[-1],)
        (k,) = Linear(size, self.dtype, bias=True, wide=True, name="cross_k")(states)
        k = RMSNorm(self.epsilon, name="cross_k_norm")(k).astype(self.dtype)
        (v,) = Linear(size, self.dtype, bias=True, name="cross_v")(states)
        heads = (*states.shape[:2], -1, self.head_dim)
        return k.reshape(heads), v.reshape(heads)


class AdaLNSingleLayer(TransformerLayer):
    """Self-attention, cross-attention to the prompt, feed-forward; modulated per frame.

    What is added to the tokens is added in float32, as the references do in any number type.
    """

    mlp_width: int
    centred: bool
    """Whether norms of tokens subtract the mean."""
    cross_norm: bool
    """Whether tokens are normalised before they read the prompt."""
    head_epsilon: float
    """Added to the mean square of queries and keys."""

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
        normalize = layer_normalize if self.centred else rms_normalize

        call = self._attention_call(index, shared)
        y = modulate(x, scale_a, shift_a, normalize).astype(self.dtype).reshape(flat)
        y, state = self._attend(y, shared.rotary, state, call)
        x = (x + gate(y.reshape(x.shape), gate_a)).astype(self.dtype)

        y = x
        if self.cross_norm:
            norm = nn.LayerNorm(use_fast_variance=False, dtype=jnp.float32, name="cross_norm")
            # The barrier lets one pass write the sum, or XLA adds in the norm and once more.
            x = jax.lax.optimization_barrier(x)
            y = norm(x).astype(self.dtype)
        x = x + self._read(y.reshape(flat), shared.text, index).reshape(x.shape)

        y = modulate(x, scale_m, shift_m, normalize).astype(self.dtype)
        y = self._linear("down", width, gelu(self._linear("up", self.mlp_width, y)), wide=True)
        x = constrain((x + gate(y, gate_m)).astype(self.dtype), "batch", "tokens")
        return x, (state, x.reshape(flat) if self.keep else None)

    def _attend(
        self, x: Tokens, rotary: Rotary, state: PyTree, call: AttentionCall
    ) -> tuple[Tokens, PyTree]:
        """Attention among video tokens."""
        # Queries and keys are turned next, which is one pass with the division.
        q, k = (self._heads(f"self_{part}", x, apart=True) for part in "qk")
        v = self._linear("self_v", x.shape[-1], x).reshape(q.shape)
        q = rotate(q, rotary).astype(self.dtype)
        call = gated(self, call, x, q.shape)
        out, state = attend(self.policy, q, k, v, state, call)
        return self._linear("self_out", x.shape[-1], out.reshape(x.shape), wide=True), state

    def _read(
        self,
        x: Tokens,
        told: tuple[TextStates, Any, PictureStates | None],
        index: Int[Array, ""],
    ) -> Tokens:
        """Video tokens read the prompt: so many states of it, or all where no number is said.

        Where there are states of pictures, the same queries read those too, and what both say is
        added.
        """
        text, lengths, pictures = told
        if text.heads is None:
            heads = PromptHeads(self.head_dim, self.head_epsilon, self.dtype)
            nn.share_scope(self, heads)
            k, v = heads(text.states)
        else:
            k, v = (jax.lax.dynamic_index_in_dim(x, index, 1, False) for x in text.heads)
        q = self._heads("cross_q", x)
        out = read_prompt(q, k, v, lengths, text)
        if pictures is not None:
            k, v = (self._linear(f"picture_{part}", x.shape[-1], pictures.states) for part in "kv")
            k = RMSNorm(self.head_epsilon, name="picture_k_norm")(k)
            k, v = (y.reshape(*y.shape[:2], *q.shape[2:]) for y in (k, v))
            seen = read(q, k, v, None)
            out = out + jnp.where(pictures.known[:, None, None, None], seen, 0)
        return self._linear("cross_out", x.shape[-1], out.reshape(x.shape))

    def _heads(self, name: str, x: Tokens, apart: bool = False) -> Float[Array, "B L N E"]:
        """Returns queries or keys of `x`, normalised over all heads together (`RMSNorm`)."""
        y = self._linear(name, x.shape[-1], x, wide=True)
        y = RMSNorm(self.head_epsilon, apart, name=f"{name}_norm")(y).astype(self.dtype)
        return y.reshape(*y.shape[:2], -1, self.head_dim)

    def _linear(
        self, name: str, size: int, x: Float[Array, "*batch I"], wide: bool = False
    ) -> Array:
        return Linear((size,), self.dtype, bias=True, wide=wide, name=name)(x)[0]


class AdaLNSingle(Transformer, nn.Module):
    """Base of text-to-video networks of `AdaLNSingleLayer`s; a family sets the fields.

    Parameters are float32, products run in `dtype`; sums, norms, modulation and the embedding of
    levels in float32.

    Attributes:
        width: Features of a token.
        depth: Layers.
        latent_channels: Channels of the latents.
        head_dim: Features of a head.
        mlp_width: Hidden features of the feed-forward part of a layer.
        patch: Cells of a token's side.
        frequencies: Pairs of sinusoids that a level is told in.
        policy: Who attends to whom.
        collect: Layers whose tokens are collected.
        remat: What the backward pass computes again.
        unroll: Layers per iteration of the compiled loop.
        dtype: Number type of products.
    """

    width: int
    depth: int
    latent_channels: int
    head_dim: int
    mlp_width: int
    patch: int = 1
    frequencies: int = 128
    policy: Policy = Dense()
    cache: StepCache | None = None
    collect: tuple[int, ...] = ()
    remat: Remat = "matmuls"
    unroll: int = 1
    dtype: str = "bfloat16"

    ports: ClassVar[tuple[str, ...]] = ("text",)
    wide: ClassVar[tuple[str, ...]] = ("time_hidden", "time_out")
    """Parts whose kernels stay float32 in every number type."""
    layer: ClassVar[type[AdaLNSingleLayer]] = AdaLNSingleLayer
    """What it has `depth` of."""

    def made(self) -> dict[str, Any]:
        """Returns the fields of the layers beside those of `TransformerLayer`."""
        raise NotImplementedError

    def prompt_lengths(self, text: TextStates) -> Int[Array, "B ..."] | None:
        """Returns how many states of a prompt are read; None is all, padding too."""
        return text.lengths

    def read_pictures(self, conditions: Conditions) -> PictureStates | None:
        """Returns the states of pictures as layers read them, None where there are none."""
        return None

    def patched(self, x: Latents, call: Call, conditions: Conditions) -> Float[Array, "B F P E"]:
        """Returns what tokens are made of: the squares of cells of every frame."""
        return self._patches(x)

    @nn.compact
    def __call__(
        self, x: Latents, call: Call, conditions: Conditions, carry: Carry | None = None
    ) -> tuple[Latents, Carry]:
        """Predicts the velocity `noise - clean` of every latent.

        Args:
            x: Noisy latents.
            call: Level of each frame in thousandths, 1000 noise .. 0 clean, as the process of
                the family tells it, and the row of the run.
            conditions: States of the prompt.
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
            raise ConfigError("no prompt was given", "every layer of this model reads one", fix)
        batch, frames, height, width, _ = x.shape
        tokens = self._linear("patch_in", self.width, self.patched(x, call, conditions))
        way = self._way(x.shape[:4], call, carry)

        time = self._time(call.t)
        told = self._linear("modulation", 6 * self.width, nn.silu(time))
        told = told.reshape(batch, frames, 6, self.width)
        states = conditions.text.states
        if conditions.text.heads is None:
            hidden = gelu(self._linear("text_hidden", self.width, states))
            states = self._linear("text_out", self.width, hidden)
        text = conditions.text.seen(call.row.frame, frames, states)
        text = (text, self.prompt_lengths(text), self.read_pictures(conditions))
        shared = Shared(told, way.rotary, text, call.row, call.t, call.t_next)
        made = {"mlp_width": self.mlp_width, **self.made()}
        tokens, carry = self._layers(self.layer, made, tokens, way, shared)

        table = self.param(
            "head_modulation", nn.initializers.normal(self.width**-0.5), (2, self.width)
        )
        shift, scale = (time.astype(jnp.float32) + table[i][None, None] for i in range(2))
        y = self._pinned(modulate(tokens, scale, shift, layer_normalize).astype(self.dtype))
        y = self._linear("patch_out", self.patch**2 * self.latent_channels, y)
        return self._unpatched(y, height, width), carry

    def heard(self, variables: PyTree, conditions: Conditions) -> Conditions:
        """Returns conditions with the keys and values of the prompt of all layers, for many calls.

        As they are on a mesh, where weights of all layers would be gathered at a time.

        Args:
            variables: Those of the network.
            conditions: States of the prompt.
        """
        text = conditions.text
        if text is None or used() is not None:
            return conditions

        def own(name: str) -> PyTree:
            return {kind: tree[name] for kind, tree in variables.items() if name in tree}

        linear: Any = Linear((self.width,), self.dtype, bias=True, parent=None)
        (hidden,) = linear.apply(own("text_hidden"), text.states)
        (states,) = linear.apply(own("text_out"), gelu(hidden))
        heads = PromptHeads(self.head_dim, self.made()["head_epsilon"], self.dtype, parent=None)
        states = jnp.broadcast_to(states[None], (self.depth, *states.shape))  # or weights are moved
        made = jax.vmap(heads.apply, out_axes=1)(own("layers"), states)
        text = dataclasses.replace(text, heads=made)
        return dataclasses.replace(conditions, text=text)

    def _time(self, t: NoiseLevels) -> Float[Array, "B F D"]:
        """Returns the embedding of levels in thousandths: sinusoids, then two layers."""
        x = sinusoids(t, self.frequencies)
        (x,) = Linear((self.width,), "float32", bias=True, name="time_hidden")(x)
        (x,) = Linear((self.width,), "float32", bias=True, name="time_out")(nn.silu(x))
        return x.astype(self.dtype)

    def _linear(self, name: str, size: int, x: Float[Array, "*batch I"]) -> Array:
        return Linear((size,), self.dtype, bias=True, name=name)(x)[0]
