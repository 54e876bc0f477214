"""VideoDiT: a video diffusion transformer in which every frame has its own noise level."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Latents, PyTree
from jvdm.attention import Dense, Policy, TemporalSwin
from jvdm.errors import ConfigError
from jvdm.features import rms_normalize
from jvdm.models.attention import CrossAttention, SelfAttention
from jvdm.models.carry import Carry
from jvdm.models.conditions import ChannelCondition, Conditions, PlanCondition
from jvdm.models.dynamic_width import DynamicWidth, Routed, refuse
from jvdm.models.layers import FeedForward, Linear, RMSNorm, TimeEmbedding, waves_of_places
from jvdm.models.modulation import gate, residual_modulate, residual_rms_norm
from jvdm.models.stack import Remat
from jvdm.models.state_space import Mamba2, TokenScan
from jvdm.models.step_cache import StepCache
from jvdm.models.transformer import Shared, Transformer, TransformerLayer
from jvdm.parallel import constrain
from jvdm.samplers import Call


class VideoDiTLayer(TransformerLayer):
    """Self-attention or a scan, cross-attention to the prompt, feed-forward; adaLN per frame."""

    mlp_ratio: int
    scan: Mamba2 | None
    planned: int
    """How many layers, from the first on, read a plan."""
    dynamic: DynamicWidth | None
    """Routers say what counts."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F P D"], mine: tuple[Int[Array, ""], PyTree], shared: Shared
    ) -> tuple[Float[Array, "B F P D"], tuple[PyTree, Float[Array, "B L D"] | None]]:
        """Returns the tokens, the policy's next state of this layer, and what is collected.

        `mine` is the index of the layer and the policy's state of it.
        """
        index, state = mine
        width = x.shape[-1]
        vectors = self._vectors(_gates_open, shared)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            vectors[:, :, i].astype(self.dtype) for i in range(6)
        )
        flat = (x.shape[0], x.shape[1] * x.shape[2], width)
        if shared.plan is not None:
            x = jnp.where(index < self.planned, self._planned(x, shared.plan), x)

        mixer = SelfAttention(self.head_dim, self.policy, self.dtype, name="self_attention")
        call = self._attention_call(index, shared)
        x, y = residual_modulate(x, scale_a, shift_a)
        y = y.reshape(flat)
        mixed = []
        router = None if shared.level is None else Routed(self, x.shape, shared.level)
        if self.scan is None or self.scan.beside:
            given = (y, shared.rotary, state, call)
            made, state = mixer(*given) if router is None else router.attended(mixer, *given)
            mixed.append(made)
        if self.scan is not None:
            scan = TokenScan(self.scan, self.head_dim, self.grid, self.dtype, name="scan")
            mixed.append(scan(y, index))

        y, gates = functools.reduce(jnp.add, mixed).reshape(x.shape), gate_a
        if shared.text is not None:
            reader = CrossAttention(self.head_dim, self.dtype, name="cross_attention")
            x, y = residual_rms_norm(RMSNorm(name="cross_norm"), y, x, gates)
            y, gates = reader(y.reshape(flat), shared.text).reshape(x.shape), None

        mlp = FeedForward(self.mlp_ratio, self.dtype, name="mlp")
        x, y = residual_modulate(y, scale_m, shift_m, x, gates)
        y = mlp(y) if router is None else router.fed(mlp, y)
        x = constrain(x + gate(y, gate_m), "batch", "tokens")
        return x, (state, x.reshape(flat) if self.keep else None)

    def _planned(self, x: Array, plan: Array) -> Array:
        """Returns tokens that a plan shifts, scales and adds through a gate, each its own way.

        A plan that says zeros changes nothing (adaptive norm of ARLON, arXiv:2410.20502).
        """
        shift, scale, gates = jnp.split(plan.reshape(*x.shape[:3], -1), 3, -1)
        table = self.param("plan", nn.initializers.zeros, (3, x.shape[-1])).astype(self.dtype)
        table = table[:, None, None, None]
        y = rms_normalize(x).astype(self.dtype) * (1.0 + scale + table[0]) + shift + table[1]
        return x + gates * (1.0 + table[2]) * y


def _gates_open(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """Shifts and scales start at 0, gates at 0.3: measured in specs/shipped_model.md, 4."""
    return jnp.zeros(shape, dtype).at[jnp.array([2, 5])].set(0.3)


class VideoDiT(Transformer, nn.Module):
    """Diffusion transformer over latent videos (Peebles and Xie, arXiv:2212.09748).

    Noise levels `t[B, F]` modulate each frame on its own (adaLN), so any mixture
    of clean, noisy and frozen frames is a legal input. Prompts enter by
    cross-attention, known frames by the `channel` port, positions by rotary
    embedding. Actions (the `actions` port) modulate the frame that comes to be under them, as in
    Next-Frame Diffusion (arXiv:2506.01380); what frames will roughly be (the `plan` port) changes
    their tokens in the first half of the layers. With a `scan` layers read all tokens in linear
    time, beside their attention or without it. With `dynamic` routers say which heads, channels,
    tokens and frames count. With `next_share` it is told where a step leads, and says the mean
    velocity up to there. Parameters are float32, products run in `dtype`.
    """

    silent: ClassVar[tuple[str, ...]] = ("gate", "width_router", "token_router", "time_next")
    """Parts that change nothing as they are drawn: weights to start training from may lack them."""

    width: int = 384
    depth: int = 12
    latent_channels: int = 16
    head_dim: int = 64
    mlp_ratio: int = 4
    patch: int = 2
    rotary_axes: tuple[int, int, int] = (16, 24, 24)
    rotary_base: float = 100.0
    position_waves: int = 0
    """Waves along each side of a frame that tell a token where in the frame it is; 0 for none."""
    next_share: float = 0.0
    """Share of the level that a step leads to in what is told of levels: networks that jump."""
    ports: tuple[str, ...] = ("text",)
    actions: tuple[str, ...] = ()
    policy: Policy = Dense()
    scan: Mamba2 | None = None
    dynamic: DynamicWidth | None = None
    cache: StepCache | None = None
    collect: tuple[int, ...] = ()
    remat: Remat = "matmuls"
    unroll: int = 1
    dtype: str = "bfloat16"

    @property
    def channels_out(self) -> int:
        """Numbers of a latent cell that come out."""
        return self.latent_channels

    @nn.compact
    def __call__(
        self, x: Latents, call: Call, conditions: Conditions, carry: Carry | None = None
    ) -> tuple[Float[Array, "B F H W _"], Carry]:
        """Predicts the velocity `noise - clean` of every latent.

        Args:
            x: Noisy latents.
            call: Noise level of each frame, 1 noise .. 0 clean, and the row of the run.
            conditions: The prompt and the other ports.
            carry: What the previous call returned, at first `start(...)`; None for a single
                call. Features are collected in a single call, and where it has some.

        Returns:
            The prediction in float32, and the carry for the next call.

        Raises:
            ShapeError: If the latents do not divide into patches.
            ConfigError: If a condition has no port in this model, or the policy cannot run
                on a grid of these sizes.
        """
        self._check(conditions)
        b, f, h, w, _ = x.shape
        way = self._way(x.shape[:4], call, carry)
        embed = Linear((self.width,), self.dtype, bias=True, name="patch_in")
        (tokens,) = embed(self._patches(x))
        if self.position_waves:
            port = Linear((self.width,), self.dtype, scale=0.5, name="position_in")
            (places,) = port(waves_of_places(h // self.patch, w // self.patch, self.position_waves))
            tokens = tokens + places[None, None]
        channel = conditions.channel
        if self.is_initializing() and "channel" in self.ports and channel is None:
            channel = ChannelCondition(x, jnp.zeros(x.shape[:-1], bool))
        if channel is not None:
            tokens = tokens + self._channel(channel)
        time = self._time(call)
        level = self._level(time)
        time = nn.silu(time + self._acted(conditions.actions, call) if self.actions else time)
        (modulation,) = Linear((6 * self.width,), self.dtype, 0.1, True, name="modulation")(time)
        text = conditions.text
        if text is not None:
            (states,) = Linear((self.width,), self.dtype, name="text_in")(text.states)
            text = text.seen(call.row.frame, f, states)

        vectors = constrain(modulation.reshape(b, f, 6, self.width), "batch")
        plan = self._plan(conditions.plan, x) if "plan" in self.ports else None
        shared = Shared(vectors, way.rotary, text, call.row, call.t, call.t_next, None, plan, level)
        made = {"mlp_ratio": self.mlp_ratio, "scan": self.scan, "dynamic": self.dynamic}
        made["planned"] = (self.depth + 1) // 2
        tokens, carry = self._layers(VideoDiTLayer, made, tokens, way, shared)
        return self._head(tokens, time, h, w), carry

    def _attention(self) -> Policy:
        """Returns the policy; a scan reads a whole clip in both directions, routers all tokens."""
        policy = super()._attention()
        if self.dynamic is not None and not self.dynamic.complete:
            refuse(self.cache)
        if self.scan is not None:
            self.scan.check(self.scan.expand * self.width, self.head_dim)
        if self.scan is not None and type(policy) not in (Dense, TemporalSwin):
            what = f"the attention {type(policy).__name__} beside a scan of all tokens"
            why = "the scan reads all tokens of a call, whatever its attention leaves out"
            raise ConfigError(what, why, "use dense or temporal_swin, or a model without scans")
        return policy

    def _time(self, call: Call) -> Float[Array, "B F D"]:
        """Returns what is told of levels; of frames that stay, what a plain network is told.

        `(1 - g) e(t) + g e'(t_next)` with a share `g`, and `e'` at first `e` (AnyFlow).
        """
        embed = TimeEmbedding(self.width, dtype=self.dtype, name="time")
        time = embed(call.t)
        if not self.next_share:
            return time
        if self.dynamic is not None:
            what, why = "routers in a network that jumps", "they decide by the level alone"
            raise ConfigError(what, why, "leave dynamic or next_share out")
        more = TimeEmbedding(self.width, dtype=self.dtype, scale=0.0, name="time_next")
        after = embed(call.t_next) + more(call.t_next)
        return time + self.next_share * (after - time)

    def _level(self, time: Array) -> Float[Array, "B F D"] | None:
        """Returns what routers read of the levels; None where everything counts."""
        rule = self.dynamic
        if rule is None or (rule.complete and not self.is_initializing()):
            return None
        rule.check(self.width // self.head_dim, self.mlp_ratio * self.width)
        return nn.silu(time)

    def _head(self, tokens: Array, time: Array, height: int, width: int) -> Latents:
        (vectors,) = Linear((2 * self.width,), self.dtype, 0.1, True, name="head_modulation")(time)
        shift, scale = jnp.split(constrain(vectors, "batch"), 2, -1)
        _, y = residual_modulate(tokens, scale, shift)
        y, size = self._pinned(y), self.patch**2 * self.channels_out
        (y,) = Linear((size,), self.dtype, 0.05, True, name="patch_out")(y)
        return self._unpatched(y, height, width)

    def _channel(self, channel: ChannelCondition) -> Array:
        known = channel.known[..., None].astype(jnp.float32)
        inputs = jnp.concatenate([channel.latents * known, known], -1)
        port = Linear((self.width,), self.dtype, scale=0.0, name="channel_in")
        return port(self._patches(inputs))[0]

    def _plan(self, plan: PlanCondition | None, x: Latents) -> Float[Array, "B F P E"] | None:
        """Returns shift, scale and gate of every token, zeros for clips without a plan."""
        if plan is None and not self.is_initializing():
            return None
        plan = plan or PlanCondition(x, jnp.ones(len(x), bool))
        (hidden,) = Linear((self.width,), self.dtype, bias=True, name="plan_in")(
            self._patches(plan.latents)
        )
        port = Linear((3 * self.width,), self.dtype, scale=0.0, name="plan_out")
        return port(nn.silu(hidden))[0] * plan.known[:, None, None, None]

    def _acted(self, actions: Array | None, call: Call) -> Array:
        """Returns what actions add to the embedding of the levels, `[B | 1, F, D]`."""
        count = call.t.shape[1]
        shape = (len(self.actions), self.width)
        table = self.param("actions_in", nn.initializers.zeros, shape)
        if actions is None:
            return jnp.zeros((1, count, self.width), self.dtype)
        if actions.shape[1] != count:
            actions = jax.lax.dynamic_slice_in_dim(actions, call.row.frame, count, 1)
        added = table[jnp.maximum(actions, 0)] * (actions >= 0)[..., None]
        return added.astype(self.dtype)

    def _check(self, conditions: Conditions) -> None:
        conditions.check(self.ports)
        if ("actions" in self.ports) != bool(self.actions):
            what = f"a model with the ports {', '.join(self.ports)} and {len(self.actions)} actions"
            raise ConfigError(what, "the port says which there are", "give both, or neither")
        if self.is_initializing() and "text" in self.ports and conditions.text is None:
            raise ConfigError(
                "parameters of a model with a text port, without text",
                "the width of the text states is not known",
                'give text states of any values, or build the model without the port "text"',
            )
