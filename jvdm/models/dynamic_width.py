"""Layers that compute less where less is needed: by noise level, by token and by frame (DyDiT++).

Routers of a layer read the noise level and say which heads of attention and which groups of
channels of the MLP count; others read tokens and say which of these, and which frames, the MLP
changes at all. Every frame has its own level, so a frame has its own width: what no frame of a call
needs is not computed, what some frames do not need is masked in these.

Reference: Zhao et al., DyDiT, arXiv:2410.03456, and DyDiT++, arXiv:2504.06803.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, NoiseLevels, PyTree, Tokens
from jvdm.attention import Dense
from jvdm.compiling import Program
from jvdm.errors import ConfigError
from jvdm.models.layers import Linear, TimeEmbedding
from jvdm.models.regions import Regions
from jvdm.models.stack import GATES
from jvdm.parallel import token_parts


class Open(NamedTuple):
    """Which parts of a layer count for each frame, 1 or 0; the first of each always does.

    Attributes:
        heads: f32[B, F, N], heads of attention.
        groups: f32[B, F, G], groups of channels of the MLP.
    """

    heads: Float[Array, "B F N"]
    groups: Float[Array, "B F G"]


@dataclasses.dataclass(frozen=True)
class DynamicWidth:
    """What a network with routers decides, and how its calls are compiled.

    Attributes:
        groups: Groups of channels of the MLP; 0 is one for each head, as published.
        timestep: Whether noise levels say which heads and groups count.
        tokens: Whether the MLP leaves tokens out.
        frames: Whether it leaves frames out, by the mean of their tokens.
        temperature: Of the gates in training: the larger, the more closed ones learn.
        noise: Size of the noise of the gates in training; less than 1 leaves less for short runs
            to decide, as videos are made without.
        rate: How many times as fast as other parameters what routers say moves, under Adam.
        bias: What routers of width say before they are trained, give or take one: all counts.
        token_bias: Likewise those of tokens and frames.
        buckets: Widths that programs are compiled for, at most: multiples of `1 / buckets`.
        width: Heads and groups that a program computes; None computes all and masks.
        capacity: Share of the tokens of a video that a program sends through the MLP: those of the
            highest scores; None sends all and masks.
        complete: Whether everything counts, whatever routers say.

    Raises:
        ConfigError: If a number is outside of its range.
    """

    groups: int = 0
    timestep: bool = True
    tokens: bool = True
    frames: bool = True
    temperature: float = 5.0
    noise: float = 1.0
    rate: float = 1.0
    bias: float = 15.0
    token_bias: float = 15.0
    buckets: int = 4
    width: tuple[int, int] | None = None
    capacity: float | None = None
    complete: bool = False

    def __post_init__(self) -> None:
        if (
            min(self.groups, self.buckets - 1, self.noise) < 0
            or min(self.temperature, self.rate) <= 0
        ):
            what = f"{self.groups} groups, {self.buckets} buckets, a temperature of "
            what += f"{self.temperature:g}, noise of {self.noise:g}, a rate of {self.rate:g}"
            fix = "temperature and rate are above 0, buckets 1 or more, the others 0 or more"
            raise ConfigError(what, "there is no such network", fix)
        if self.capacity is not None and not 0 < self.capacity <= 1:
            what, why = f"a capacity of {self.capacity:g}", "it is a share of the tokens"
            raise ConfigError(what, why, "use a number above 0, up to 1, or leave it out")

    def parts(self, heads: int) -> tuple[int, int]:
        """Returns how many heads and groups a layer of so many heads has."""
        return heads, self.groups or heads

    def check(self, heads: int, hidden: int) -> None:
        """Raises `ConfigError` if a layer of so many heads and hidden channels has no such parts.

        Args:
            heads: Heads of attention.
            hidden: Channels between the projections of the MLP.
        """
        both = self.parts(heads)
        if min(both) < 2:
            what, why = f"routers of {both[0]} heads and {both[1]} groups", "one of them always "
            raise ConfigError(what, why + "counts: nothing is chosen", "use 2 or more")
        if hidden % both[1]:
            what, why = f"{both[1]} groups of {hidden} channels", "they do not divide"
            raise ConfigError(what, why, "use another number of groups")
        if self.width and not all(0 < n <= m for n, m in zip(self.width, both, strict=True)):
            what = f"a program of {self.width[0]} heads and {self.width[1]} groups"
            raise ConfigError(what, f"there are {both[0]} and {both[1]}", "use 1 up to these")

    def bucket(self, needed: int, parts: int) -> int:
        """Returns how many of `parts` a program has that needs so many."""
        if parts <= self.buckets:
            return needed
        return math.ceil(math.ceil(needed * self.buckets / parts) * parts / self.buckets)


def gate(
    logits: Float[Array, "*shape"], noise: Array | None, temperature: float
) -> Float[Array, "*shape"]:
    """Returns 1 where a router says that something counts, 0 elsewhere.

    Args:
        logits: What it says.
        noise: The difference of two Gumbel draws, in training: close decisions are made both
            ways, and the slope is that of `sigmoid((logits + noise) / temperature)`, though the
            values are 1 and 0 (straight-through). None decides, without a slope.
        temperature: Of the slope.
    """
    if noise is None:
        return (logits > 0).astype(logits.dtype)
    soft = jax.nn.sigmoid((logits + noise) / temperature)
    hard = jax.lax.stop_gradient((soft > 0.5).astype(soft.dtype))
    return hard + (soft - jax.lax.stop_gradient(soft))


class WidthRouter(nn.Module):
    """Says by the noise levels of frames which heads and groups of a layer count."""

    rule: DynamicWidth
    heads: int

    @nn.compact
    def __call__(self, level: Float[Array, "B F D"]) -> Open:
        """Returns the gates.

        Args:
            level: Embedding of the levels, whatever else frames are told. Frames of a clip share
                the noise of training: those of one level have one width, as when videos are made.
        """
        counts = tuple(count - 1 for count in self.rule.parts(self.heads))
        rate = self.rule.rate
        said = Linear(counts, "float32", 1.0 / rate, True, name="to_parts")(level)
        gates = []
        for number, logits in enumerate(said):
            noise = None
            if self.has_rng(GATES):
                key = jax.random.fold_in(self.make_rng(GATES), number)
                shape = (len(logits), 1, logits.shape[-1])
                noise = self.rule.noise * jax.random.logistic(key, shape)
            made = gate(rate * logits + self.rule.bias, noise, self.rule.temperature)
            gates.append(jnp.concatenate([jnp.ones_like(made[..., :1]), made], -1))
        return Open(*gates)


class TokenRouter(nn.Module):
    """Says which tokens and which frames the MLP of a layer changes."""

    rule: DynamicWidth

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F P D"], holds: Float[Array, " P"]
    ) -> tuple[Float[Array, "B F P"], Float[Array, "B F P"]]:
        """Returns 1 for tokens that it changes, 0 for others, and scores to choose among the first.

        Args:
            x: Tokens, normalised and modulated.
            holds: 1 for each token of a frame, 0 for padding of an order.
        """
        gates = jnp.broadcast_to(holds, x.shape[:3])
        scores, rate = jnp.zeros(x.shape[:3]), self.rule.rate
        if self.rule.tokens:
            (hidden,) = Linear((max(x.shape[-1] // 16, 1),), "float32", 1.0, True, name="token")(x)
            (said,) = Linear((1,), "float32", 1.0 / rate, True, name="to_token")(nn.relu(hidden))
            scores = rate * said[..., 0] + self.rule.token_bias
            gates = gates * self._gate(scores)
        if self.rule.frames:
            mean = jnp.einsum("bfpd,p->bfd", x.astype(jnp.float32), holds / holds.sum())
            (said,) = Linear((1,), "float32", 1.0 / rate, True, name="to_frame")(mean)
            gates = gates * self._gate(rate * said + self.rule.token_bias)
        return gates, scores

    def _gate(self, logits: Array) -> Array:
        noise = None
        if self.has_rng(GATES):
            noise = self.rule.noise * jax.random.logistic(self.make_rng(GATES), logits.shape)
        return gate(logits, noise, self.rule.temperature)


class Routed:
    """What the routers of a layer say in a call, and its two halves under them."""

    def __init__(self, layer: Any, shape: Sequence[int], level: Float[Array, "B F D"]) -> None:
        """Asks the router of width; made inside the layer, a Linen module.

        Args:
            layer: With the fields `dynamic`, `head_dim` and `order`.
            shape: Sizes of the tokens `[B, F, P, D]`.
            level: What it reads.
        """
        self.layer, self.rule, self.shape = layer, layer.dynamic, tuple(shape)
        heads = self.shape[3] // layer.head_dim
        if self.rule.timestep:
            self.open = WidthRouter(self.rule, heads, name="width_router")(level)
        else:
            self.open = Open(*(jnp.ones((*shape[:2], n)) for n in self.rule.parts(heads)))

    def attended(self, mixer: Any, x: Tokens, *given: Any) -> tuple[Tokens, PyTree]:
        """Returns what the layer attends to with the heads that count, and the policy's next state.

        Heads that no frame needs are computed by programs for all heads (`rule.width`), and beside
        policies other than full attention, whose lists and states are those of all heads.

        Args:
            mixer: `SelfAttention` of all heads.
            x: Tokens, normalised and modulated.
            given: The other arguments of `mixer`.
        """
        gates = self.open.heads
        parts = count = gates.shape[-1]
        if self.rule.width is not None and type(mixer.policy) is Dense:
            count = self.rule.width[0]
        if count < parts:
            places, params = busiest(gates, count), self._params("self_attention")
            gates = gates[..., places]
            qkv = {name: _columns(leaf, parts, places) for name, leaf in params["qkv"].items()}
            out = {name: _rows(leaf, parts, places) for name, leaf in params["out"].items()}
            mixer = mixer.clone(parent=None, name=None, heads=count)
            mixer = mixer.bind({"params": {**params, "qkv": qkv, "out": out}})
        return mixer(x, *given, jnp.repeat(gates, self.shape[2], 1))

    def fed(self, mlp: Any, x: Float[Array, "B F P D"]) -> Float[Array, "B F P D"]:
        """Returns what the MLP makes of the tokens that it changes, with the channels that count.

        Args:
            mlp: `FeedForward` with all channels.
            x: Tokens, normalised and modulated.
        """
        gates, order = self.open.groups, self.layer.order
        holds = jnp.ones(x.shape[2]) if order is None else jnp.asarray(order.holds, jnp.float32)
        share, scores = jnp.broadcast_to(holds, x.shape[:3]), jnp.zeros(x.shape[:3])
        if self.rule.tokens or self.rule.frames:
            share, scores = TokenRouter(self.rule, name="token_router")(x, holds)
        heads, through = self.open.heads.mean(-1), share @ holds / holds.sum()
        spent = jnp.stack([heads.mean(1), (gates.mean(-1) * through).mean(1)])
        self.layer.sow(GATES, "spent", spent)
        parts = gates.shape[-1]
        count = parts if self.rule.width is None else self.rule.width[1]
        if count < parts:
            places, params = busiest(gates, count), self._params("mlp")
            gates = gates[..., places]
            up = {"kernel": _columns(params["up"]["kernel"], parts, places)}
            down = {"kernel": _rows(params["down"]["kernel"], parts, places)}
            mlp = mlp.clone(parent=None, name=None, hidden=up["kernel"].shape[1])
            mlp = mlp.bind({"params": {"up": up, "down": down}})
        if self.rule.capacity is None:
            keep = jnp.broadcast_to(gates[:, :, None], (*x.shape[:3], count))
            return mlp(x, keep) * share[..., None].astype(x.dtype)
        return _gathered(mlp, x, gates, share, scores, self.rule.capacity)

    def _params(self, name: str) -> Mapping[str, Any]:
        return self.layer.variables["params"][name]


def _gathered(
    mlp: Any, x: Array, gates: Array, share: Array, scores: Array, capacity: float
) -> Float[Array, "B F P D"]:
    """Sends the tokens of the highest scores of each video through an MLP, others through none."""
    batch, frames, each, width = x.shape
    whole = frames * each
    share, scores = share.reshape(batch, whole), scores.reshape(batch, whole)
    ranks = jnp.where(share > 0, scores, -jnp.inf)
    _, mine = jax.lax.top_k(ranks, math.ceil(capacity * whole))
    chosen = jnp.take_along_axis(x.reshape(batch, whole, width), mine[..., None], 1)
    keep = jnp.take_along_axis(gates, mine[..., None] // each, 1)
    counts = jnp.take_along_axis(share, mine, 1)[..., None].astype(x.dtype)
    made = jnp.zeros((batch, whole, width), x.dtype)
    made = made.at[jnp.arange(batch)[:, None], mine].set(mlp(chosen, keep) * counts)
    return made.reshape(x.shape)


def busiest(gates: Float[Array, "B F N"], count: int) -> Int[Array, " count"]:
    """Returns the parts that most frames of a call need, the first among them, in their order."""
    needs = jax.lax.stop_gradient(gates).sum((0, 1))
    return jnp.sort(jax.lax.top_k(needs, count)[1])


def _columns(kernel: Array, parts: int, places: Array) -> Array:
    return kernel.reshape(len(kernel), parts, -1)[:, places].reshape(len(kernel), -1)


def _rows(kernel: Array, parts: int, places: Array) -> Array:
    return kernel.reshape(parts, -1, kernel.shape[-1])[places].reshape(-1, kernel.shape[-1])


def refuse(cache: Any) -> None:
    """Refuses what routers cannot run with.

    Raises:
        ConfigError: If devices share the tokens of a video, or a step cache runs some tokens.
    """
    why = "a frame is left out by the mean of all of its tokens"
    if token_parts() > 1:
        what, fix = "routers over a mesh that splits tokens", "use data, fsdp, tensor or branch"
        raise ConfigError(what, why, fix)
    if isinstance(cache, Regions):
        what, fix = "routers beside a step cache that runs some tokens", "use another step cache"
        raise ConfigError(what, why, fix)


def layer_costs(model: Any, tokens: int) -> tuple[float, float, float]:
    """Returns operations of a layer and token: of attention, of the MLP, and of all that is left.

    The last has what reads the prompt, without the scores, and a share of the first and last layer.

    Args:
        model: A VideoDiT.
        tokens: Of a video, which attention grows with.
    """
    width = model.width
    ends = 4 * model.patch**2 * model.latent_channels * width / model.depth
    reads = 4 * width**2 if "text" in model.ports else 0
    attention, mlp = 8 * width**2 + 4 * width * tokens, 4 * model.mlp_ratio * width**2
    return float(attention), float(mlp), float(reads + ends)


def needed(model: Any, params: PyTree, t: NoiseLevels) -> Int[np.ndarray, "n 2"]:
    """Returns how many heads and groups calls need, in the layer that needs most.

    Args:
        model: A network with routers.
        params: Its parameters.
        t: Levels of the frames of each of `n` calls, as the network is told them; a frame that a
            call does not see has the level of one that it sees.
    """
    return np.asarray(_needed(model, {k: params[k] for k in ("time", "layers")}, t))


@functools.partial(Program, static_argnums=0)
def _needed(model: Any, params: PyTree, t: Array) -> Array:
    heads = model.width // model.head_dim
    if not model.dynamic.timestep:
        return jnp.broadcast_to(jnp.array(model.dynamic.parts(heads)), (len(t), 2))
    embed: Any = TimeEmbedding(model.width, dtype=model.dtype)
    level = nn.silu(embed.apply({"params": params["time"]}, t))
    router: Any = WidthRouter(model.dynamic, heads)

    def layer(own: PyTree) -> Array:
        gates = router.apply({"params": own}, level)
        return jnp.stack([part.max(1).sum(-1) for part in gates], -1)

    return jax.vmap(layer)(params["layers"]["width_router"]).max(0).astype(jnp.int32)
