"""What all video transformers share: tokens of frames go through a scanned stack of layers."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Latents, NoiseLevels, PyTree
from jvdm.attention import AttentionCall, Dense, GatedDense, Policy, TokenGrid
from jvdm.errors import ConfigError, ShapeError
from jvdm.features import fold, unfold
from jvdm.models.attention import Positions, RotaryAxes
from jvdm.models.carry import Carry
from jvdm.models.layers import Rotary
from jvdm.models.modulation import modulate
from jvdm.models.stack import GATES, Remat, layer_stack
from jvdm.models.step_cache import Seen, Stack, StepCache
from jvdm.parallel import constrain, token_parts
from jvdm.parallel.stages import handed_on, taken
from jvdm.samplers import Call, Row
from pallas_kernels import TileOrder

MANY = 4
"""Videos from which on XLA would add the parts of `Rotary` in every layer and write the sum."""


class Way(NamedTuple):
    """How the tokens of one call go through the layers.

    Attributes:
        policy: Who attends to whom.
        grid: Layout of the tokens.
        order: Order of the tokens of every frame, None for raster order.
        positions: How heads turn.
        rotary: Their angles, in that order.
        carry: What the last call handed on.
        keep: Whether tokens are collected.
    """

    policy: Policy
    grid: TokenGrid
    order: TileOrder | None
    positions: Positions
    rotary: Rotary
    carry: Carry
    keep: bool


class Shared(NamedTuple):
    """What all layers of one call are given.

    `text` is the prompt as these layers read it, `common` what their policy chose for all of them,
    `plan` what a plan says to every token, `level` the embedding of the noise levels. Where a call
    is of some tokens, as frames of one token each, `frames` are the frames that they are of.
    """

    modulation: Float[Array, "B F 6 D"]
    rotary: Rotary
    text: Any
    row: Row
    t: NoiseLevels
    t_next: NoiseLevels
    common: PyTree = None
    plan: Float[Array, "B F P E"] | None = None
    level: Float[Array, "B F D"] | None = None
    frames: Int[Array, " A"] | None = None


class TransformerLayer(nn.Module):
    """Base of layers: what `Transformer` makes every one with, and what all do alike."""

    head_dim: int
    policy: Policy
    grid: TokenGrid
    order: TileOrder | None
    """Order of the tokens of a frame."""
    keep: bool
    """Whether the tokens are collected."""
    positions: Positions
    """How heads turn."""
    dtype: str

    def _vectors(
        self, init: nn.initializers.Initializer, shared: Shared
    ) -> Float[Array, "B F 6 D"]:
        """Returns shift, scale and gate of both halves: those of the call plus a table."""
        table = self.param("modulation", init, shared.modulation.shape[2:])
        vectors = shared.modulation.astype(jnp.float32) + table[None, None]
        return vectors if shared.frames is None else vectors[:, shared.frames]

    def _attention_call(self, index: Int[Array, ""], shared: Shared) -> AttentionCall:
        """Returns what the policy is told of layer `index`."""
        turn = self.positions.turning(shared.rotary, self.grid, self.dtype)
        given = (index, shared.row, shared.t, self.grid, self.order, turn, shared.common)
        return AttentionCall(*given)


class Transformer:
    """Base of networks whose layers are scanned, with an attention policy in every layer.

    A subclass is a Linen module with the members that are only declared here. Its `__call__`
    makes tokens `[B, F, P, D]`, sends them through `_layers` along the `_way` of the call,
    and makes latents of them.
    """

    width: int
    depth: int
    head_dim: int
    patch: int
    rotary_axes: tuple[int, int, int]
    rotary_base: float
    policy: Policy
    cache: StepCache | None
    collect: tuple[int, ...]
    remat: Remat
    unroll: int
    dtype: str
    reads_sections: ClassVar[bool] = True
    """Whether frames may read prompts of their own (`conditions.in_sections`)."""
    variables: Any  # Linen's, as those of every subclass
    is_initializing: Callable[[], bool]
    has_rng: Callable[[str], bool]

    @property
    def turns(self) -> Positions:
        """How heads turn with the place of a token."""
        return RotaryAxes(self.rotary_axes, self.rotary_base)

    def start(
        self,
        latent_frames: int,
        height: int,
        width: int,
        positions: Float[Array, " F"] | None = None,
        batch: int = 1,
    ) -> Carry:
        """Returns the carry before the first call.

        Args:
            latent_frames: Frames of the window that a call sees.
            height: Latent cells of a column.
            width: Latent cells of a row.
            positions: Absolute position of each frame of the whole run; 0, 1, ... over
                one window if None.
            batch: Samples times branches of guidance that a call sees.

        Raises:
            ConfigError: If the policy cannot run on these sizes.
        """
        grid = self._grid(latent_frames, height, width, batch)
        carry = Carry.first(self._attention(), self.depth, grid, positions)
        if self.cache is None:
            return carry
        shape = (batch, latent_frames, grid.tokens // latent_frames, self.width)
        tokens = jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype))
        return dataclasses.replace(carry, reused=self.cache.init(tokens, self.depth))

    def _attention(self) -> Policy:
        """Returns the policy, or what the step cache makes of it."""
        return self.policy if self.cache is None else self.cache.policy(self.policy)

    def _grid(self, frames: int, height: int, width: int, batch: int) -> TokenGrid:
        sizes = (frames, height // self.patch, width // self.patch, batch)
        return TokenGrid(*sizes, self.width // self.head_dim, self.head_dim, self.dtype)

    def _patches(self, x: Latents) -> Float[Array, "B F P E"]:
        """Returns the squares of cells of every frame, as rows of `patch`, `patch`, channels."""
        height, width = x.shape[2:4]
        if height % self.patch or width % self.patch:
            raise ShapeError(
                f"latents are {height} x {width} cells",
                f"both must be multiples of the patch size {self.patch}",
                "choose a height and width that are multiples of patch size x VAE stride",
            )
        squares = fold(x, self.patch)
        return squares.reshape(*x.shape[:2], -1, squares.shape[-1])

    def _pinned(self, y: Float[Array, "B F P D"]) -> Float[Array, "B F P D"]:
        """Returns what the last product reads, split over videos alone.

        Else XLA (jax 0.10.2) gives wrong numbers on `data=2,fsdp=2,tensor=2`, 2 videos each.
        """
        return constrain(y, "batch") if token_parts() == 1 else y

    def _unpatched(self, y: Float[Array, "B F P E"], height: int, width: int) -> Latents:
        """Inverse of `_patches`, in float32."""
        rows, columns = height // self.patch, width // self.patch
        squares = y.astype(jnp.float32).reshape(*y.shape[:2], rows, columns, y.shape[-1])
        return unfold(squares, self.patch)

    def _way(self, sizes: Sequence[int], call: Call, carry: Carry | None) -> Way:
        """Returns the way of a call on latents of `sizes` `B, F, H, W`."""
        batch, frames, height, width = sizes
        # Parameters depend on no policy but by its port, and may be made on a grid that it refuses.
        policy = self._attention()
        if self.is_initializing():
            policy = GatedDense() if policy.gated else Dense()
        grid = self._grid(frames, height, width, batch)
        keep = bool(self.collect) and (carry is None or carry.features is not None)
        carry = Carry.first(policy, self.depth, grid) if carry is None else carry
        state = jax.tree.map(operator.itemgetter(0), carry.layers)
        places = policy.positions(carry.window(call.row, frames), call.row, state)
        turns, order = self.turns, policy.order(grid)
        rotary = turns.table(places, grid)
        if order is not None:
            parts = (part[None] for part in rotary.tokens())
            cosine, sine = (_per_frame(order.apply, part, frames)[0] for part in parts)
            rotary = Rotary((cosine, sine))
        elif batch >= MANY:
            rotary = Rotary(rotary.tokens())
        return Way(policy, grid, order, turns, rotary, carry, keep)

    def _layers(
        self,
        layer: type[TransformerLayer],
        made: Mapping[str, Any],
        tokens: Float[Array, "B F P D"],
        way: Way,
        shared: Shared,
    ) -> tuple[Float[Array, "B F P D"], Carry]:
        """Sends tokens through the layers, or lets the step cache add what they did before.

        Args:
            layer: Module class of one layer.
            made: The fields that it has beside those of `TransformerLayer`.
            tokens: In raster order.
            way: How they go.
            shared: What all layers are given.

        Returns:
            The tokens in raster order, and the carry for the next call.
        """
        carry, run = way.carry, functools.partial(self._run, layer, made, way, shared)
        if self.cache is None or carry.reused is None:
            tokens, states, features = run(tokens, 0, self.depth)
            return tokens, Carry(states, carry.positions, features, carry.reused)

        def see(change: Array | None) -> Seen:
            table = self.variables["params"]["layers"]["modulation"][0]
            shift, scale = (shared.modulation[:, :, i] + table[i][None, None] for i in range(2))
            call = Call(shared.t, shared.t_next, shared.row)
            return Seen(call, shared.modulation, lambda: modulate(tokens, scale, shift), change)

        some = functools.partial(self._some, layer, made, way, shared)
        stack = Stack(lambda *part: run(*part)[:2], carry.layers, self.depth, some)
        after, states, reused = self.cache.through(stack, tokens, see, carry.reused)
        return after, dataclasses.replace(carry, layers=states, reused=reused)

    def _some(
        self,
        layer: type[TransformerLayer],
        made: Mapping[str, Any],
        way: Way,
        shared: Shared,
        tokens: Float[Array, "B F P D"],
        places: Int[Array, " A"],
        states: PyTree,
    ) -> tuple[Float[Array, "B A D"], Float[Array, "B A D"], PyTree]:
        """Runs all layers for the tokens at `places`, as frames of one token each; `Stack.some`."""
        if getattr(shared.text, "section", None) is not None:
            fix = "use one prompt, or another step cache"
            raise ConfigError(
                "some tokens of a video of several prompts", "frames read theirs", fix
            )
        flat = tokens.reshape(tokens.shape[0], -1, 1, tokens.shape[3])
        cosine, sine = (part[places] for part in way.rotary.tokens())
        frames = places // tokens.shape[2]
        plan = shared.plan
        if plan is not None:
            plan = plan.reshape(len(flat), flat.shape[1], 1, -1)[:, places]
        shared = shared._replace(frames=frames, rotary=Rotary((cosine, sine)), plan=plan)
        way = way._replace(carry=dataclasses.replace(way.carry, layers=states), keep=False)
        mine = flat[:, places]
        after, states, _ = self._run(layer, made, way, shared, mine, 0, self.depth)
        return mine[:, :, 0], after[:, :, 0], states

    def _run(
        self,
        layer: type[TransformerLayer],
        made: Mapping[str, Any],
        way: Way,
        shared: Shared,
        tokens: Float[Array, "B F P D"],
        first: int,
        end: int,
    ) -> tuple[Float[Array, "B F P D"], PyTree, Array | None]:
        """Runs layers from `first` to `end`: one scan for each policy that they are divided among.

        Returns:
            The tokens in raster order, the policy's states of these layers, and the features that
            are collected.
        """
        order, frames = way.order, tokens.shape[1]
        tokens = tokens if order is None else order.apply(tokens, 2)
        whole = tokens.shape
        if shared.plan is not None and order is not None:
            shared = shared._replace(plan=order.apply(shared.plan, 2))
        if token_parts() > 1:  # over devices, as frames of one token each
            vectors = jnp.repeat(shared.modulation, whole[2], 1)
            shared = shared._replace(modulation=constrain(vectors, "batch", "tokens"))
            tokens = tokens.reshape(whole[0], -1, 1, whole[3])
            if shared.plan is not None:
                plan = shared.plan.reshape(*tokens.shape[:3], -1)
                shared = shared._replace(plan=constrain(plan, "batch", "tokens"))
        tokens = taken(constrain(tokens, "batch", "tokens"))
        fields = {name: getattr(way, name) for name in ("grid", "order", "positions", "keep")}
        fields |= {"head_dim": self.head_dim, "dtype": self.dtype, **made}
        inputs = (jnp.arange(self.depth), way.carry.layers)
        draws = self.is_initializing() or self.has_rng(GATES)

        def stack(count: int, policy: Policy, **named: Any) -> Any:
            layers = layer_stack(layer, count, self.remat, self.unroll, draws)
            return layers(policy=policy, **fields, **named)

        def told(policy: Policy) -> Shared:
            return shared._replace(common=policy.common(way.carry.layers, shared.row, way.grid))

        parts = way.policy.in_layers(self.depth)
        if len(parts) == 1 and way.carry.reused is None:
            policy, states = parts[0][0], way.carry.layers
            layers = stack(self.depth, policy, name="layers")
            tokens, (made, features) = layers(tokens, inputs, told(policy))
            states = policy.joined(states, made, shared.row)
        else:
            own = {
                kind: tree["layers"] for kind, tree in self.variables.items() if "layers" in tree
            }
            parts = _between(parts, first, end)
            tokens, (states, features) = _divided(stack, parts, own, tokens, inputs, told, first)
        handed_on(tokens)
        if features is not None:
            features = features[jnp.array(self.collect)]
        tokens = tokens.reshape(whole)
        if order is not None:
            tokens = order.undo(tokens, 2)
            features = features if features is None else _per_frame(order.undo, features, frames)
        return tokens, states, features


def _between(parts: Sequence[tuple[Policy, int]], first: int, end: int) -> list[tuple[Policy, int]]:
    """Returns the parts of the layers from `first` to `end`."""
    ends = list(itertools.accumulate((count for _, count in parts), initial=0))
    kept = [
        (policy, min(high, end) - max(low, first))
        for (policy, _), low, high in zip(parts, ends, ends[1:], strict=False)
    ]
    return [(policy, count) for policy, count in kept if count > 0]


def _divided(
    stack: Callable[..., Any],
    parts: Sequence[tuple[Policy, int]],
    variables: PyTree,
    tokens: Array,
    inputs: PyTree,
    told: Callable[[Policy], Shared],
    first: int,
) -> tuple[Array, PyTree]:
    """Runs layers from `first` on, one policy after the other; returns tokens and all outputs."""
    outputs = []
    for policy, count in parts:
        own = jax.tree.map(operator.itemgetter(slice(first, first + count)), (variables, inputs))
        layers = stack(count, policy, parent=None)
        shared = told(policy)
        tokens, (made, features) = layers.apply(own[0], tokens, own[1], shared)
        first += count
        outputs.append((policy.joined(own[1][1], made, shared.row), features))
    return tokens, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)


def _per_frame(change: Callable[..., Array], x: Array, frames: int) -> Array:
    """Changes the order of the tokens of every frame of `[..., L, D]`."""
    changed = change(x.reshape(*x.shape[:-2], frames, -1, x.shape[-1]), x.ndim - 1)
    return changed.reshape(*x.shape[:-2], -1, x.shape[-1])
