"""A network that sees a long video block by block, its layers on one device or in stages.

A row of the matrix (`StaircaseMatrix`) takes a step with one block. Where layers lie on several
devices (the axis `stage` of the mesh), blocks follow each other through them: while the last stage
finishes one, the stages before have those of the next rows in work. A block enters when what it
reads is settled: itself and the block before it. So stages have the bits of one device; what a row
costs is a stage. With `branch` or `data` beside them a device has fewer rows to multiply, which XLA
may do by another kernel: then latents differ by a rounding, mostly as without stages.
"""

import dataclasses
import functools
import typing
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jvdm.arrays import Array, Float, Int, Latents, PyTree
from jvdm.errors import ConfigError
from jvdm.models.carry import Carry
from jvdm.models.conditions import Conditions
from jvdm.parallel import ROWS, parts
from jvdm.parallel.activations import alone, used
from jvdm.parallel.mesh import description_of, present
from jvdm.parallel.stages import Relay, relaying
from jvdm.samplers import Call, Row

STAGE = ("stage",)
NONE = -1  # of blocks: a stage has nothing in work


@typing.no_type_check
@flax.struct.dataclass
class Flow:
    """What is on its way through the stages.

    Attributes:
        layers: States of the attention policy, leading axis `depth`.
        tokens: `[S, B, W, P, D]`, what each of `S` stages was given.
        blocks: i32[S], the block that each stage had in work last.
        next_block: i32[], the block that enters next.
        newest: i32[], the last block that may be in work.
    """

    layers: PyTree
    tokens: Float[Array, "S B W P D"]
    blocks: Int[Array, " S"]
    next_block: Int[Array, ""]
    newest: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class BlockWise:
    """A network of windows as one of whole videos, for rows that step one block each.

    What is not here is that of the network. Places in a window count from 0, whatever the block.

    Attributes:
        network: The network of windows.
        block: Latent frames of a block.
        context: Latent frames before it that it sees, at its own level whatever theirs is.

    Reference: DualParal, arXiv:2505.21070.
    """

    network: Any
    block: int = 8
    context: int = 8
    by_stages: typing.ClassVar[bool] = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "network":
            raise AttributeError(name)
        return getattr(self.network, name)

    def clone(self, **fields: Any) -> "BlockWise":
        """Returns it around a network with other fields."""
        return dataclasses.replace(self, network=self.network.clone(**fields))

    @property
    def window(self) -> int:
        """Latent frames that the network sees."""
        return self.context + self.block

    def start(
        self,
        latent_frames: int,
        height: int,
        width: int,
        positions: Float[Array, " F"] | None = None,
        batch: int = 1,
    ) -> Flow:
        """Returns the flow before the first row, for the stages of the mesh that is in use.

        Raises:
            ConfigError: If the layers do not divide among the stages, the policy cannot run, or
                there is a step cache.
        """
        stages = parts(used(), STAGE)
        if self.depth % stages:
            what = f"{self.depth} layers in {stages} stages"
            raise ConfigError(what, "each has as many", "use a stage axis that divides the layers")
        if getattr(self.network, "cache", None) is not None:
            fix = "use --sampling.cache none"
            raise ConfigError("a step cache of a network of blocks", "blocks share no rows", fix)
        first = self.network.start(self.window, height, width, batch=batch)
        side = self.patch
        shape = (stages, batch, self.window, height // side * (width // side), self.width)
        none = jnp.full(stages, NONE, jnp.int32)
        tokens = jnp.zeros(shape, self.dtype)
        return Flow(first.layers, tokens, none, jnp.int32(0), jnp.int32(0))

    def apply(
        self, variables: PyTree, x: Latents, call: Call, conditions: Conditions, flow: Flow
    ) -> tuple[Latents, Flow]:
        """Returns the prediction of the block of this row; frames of others have none.

        Raises:
            ConfigError: If the mesh splits what stages cannot, or frames are given beside `x`.
        """
        mesh, stages = used(), flow.blocks.shape[0]
        check_mesh(mesh, stages)
        if conditions.channel is not None:
            fix = "use it with prompts alone"
            raise ConfigError("known frames beside the latents", "blocks have none", fix)
        tick = functools.partial(self._tick, variables, x, call, conditions, mesh)
        y, flow = tick(flow)
        if stages > 1:
            y, flow = jax.lax.while_loop(
                lambda made: made[1].blocks[-1] == NONE, lambda made: tick(made[1]), (y, flow)
            )
        whole = jnp.where((call.t != call.t_next)[..., None, None, None], jnp.nan, 0.0)
        whole = jnp.broadcast_to(whole, x.shape).astype(y.dtype)
        start = flow.blocks[-1] * self.block
        return jax.lax.dynamic_update_slice_in_dim(whole, y, start, 1), flow

    def _tick(
        self,
        variables: PyTree,
        x: Latents,
        call: Call,
        conditions: Conditions,
        mesh: Mesh | None,
        flow: Flow,
    ) -> tuple[Float[Array, "B _ H W C"], Flow]:
        """Lets every stage do its part of the block that it has; returns what the last made."""
        flow = self._entered(flow, call.t, x.shape[1])
        run = functools.partial(_stage, self, mesh)
        frames = (x, call.t, call.row.index)
        if flow.blocks.shape[0] > 1:
            assert mesh is not None
            run = _over_stages(run, mesh, variables, flow.layers, x.shape[0])
        y, layers, tokens = run(
            variables, frames, conditions, flow.layers, flow.tokens, flow.blocks
        )
        return y, dataclasses.replace(flow, layers=layers, tokens=tokens)

    def _entered(self, flow: Flow, t: Float[Array, "B F"], frames: int) -> Flow:
        """Returns the flow with every block a stage further, and the next at the first stage.

        It waits while it, or the block before it, is on its way: that changes what it reads.
        """
        moved = flow.blocks[:-1]
        new, last = flow.next_block, (frames - self.context) // self.block - 1
        on_its_way = jnp.any((moved == new) | ((moved == new - 1) & (new > 0)))
        enters = ~on_its_way & (self._level(t, new) > 0)
        blocks = jnp.concatenate([jnp.where(enters, new, NONE)[None], moved])
        # Then the cleaner block before it; after the cleanest an iteration ends, and a block more
        # begins with the next.
        cleaner = (new > 0) & (self._level(t, new - 1) > 0)
        newest = jnp.where(cleaner, flow.newest, jnp.minimum(flow.newest + 1, last))
        after = jnp.where(cleaner, new - 1, newest)
        return dataclasses.replace(
            flow,
            blocks=blocks,
            next_block=jnp.where(enters, after, new),
            newest=jnp.where(enters, newest, flow.newest),
        )

    def _level(self, t: Float[Array, "B F"], block: Array) -> Array:
        """Returns the noise level of a block: that of its last frame."""
        return t[0, self.context + self.block * jnp.maximum(block, 0) + self.block - 1]


def check_mesh(mesh: Mesh | None, stages: int) -> None:
    """Raises `ConfigError` if a mesh has other stages, or splits layers in another way too."""
    if parts(mesh, STAGE) != stages:
        raise ConfigError(f"{stages} stages", f"the mesh has {parts(mesh, STAGE)}", "begin anew")
    if mesh is not None and stages > 1 and parts(mesh, ("ring", "sequence", "tensor")) > 1:
        what = f"the mesh {description_of(mesh)}"
        fix = "use stage with data, fsdp and branch alone"
        raise ConfigError(what, "tokens and features of stages are not split", fix)


def _stage(
    of: BlockWise,
    mesh: Mesh | None,
    variables: PyTree,
    frames: tuple[Latents, Float[Array, "B F"], Array],
    conditions: Conditions,
    layers: PyTree,
    tokens: Float[Array, "1 B _ P D"],
    blocks: Int[Array, " 1"],
) -> tuple[Float[Array, "B _ H W C"], PyTree, Float[Array, "1 B _ P D"]]:
    """Does the part of one stage; what it has no block for keeps its states."""
    x, t, index = frames
    block, stages = blocks[0], parts(mesh, STAGE)
    place = jax.lax.axis_index("stage") if stages > 1 else jnp.int32(0)
    start = jnp.maximum(block, 0) * of.block
    shown = jax.lax.dynamic_slice_in_dim(x, start, of.window, 1)
    level = jax.lax.dynamic_slice_in_dim(t, start + of.window - 1, 1, 1)
    level = jnp.broadcast_to(level, shown.shape[:2])
    unwritten = jnp.zeros(of.window, bool)
    call = Call(level, level, Row(index, jnp.int32(0), unwritten, start))
    network = of.network.clone(depth=of.depth // stages)
    carry = Carry(layers, jnp.arange(of.window, dtype=jnp.float32))
    with alone(), relaying(Relay(tokens[0], place == 0)) as relay:
        y, after = network.apply(variables, shown, call, conditions, carry)
    assert relay.made is not None
    layers = jax.tree.map(lambda new, old: jnp.where(block < 0, old, new), after.layers, layers)
    made = relay.made.reshape(tokens.shape).astype(tokens.dtype)
    if stages > 1:
        y = jax.lax.psum(jnp.where(place == stages - 1, y, 0), "stage")
        made = jax.lax.ppermute(made, "stage", [(i, (i + 1) % stages) for i in range(stages)])
    return y, layers, made


def _over_stages(run: Any, mesh: Mesh, variables: PyTree, layers: PyTree, rows: int) -> Any:
    """Returns the part of a stage as that of all: each device has its layers and their states."""
    split = present(mesh, ROWS) if rows % parts(mesh, ROWS) == 0 else ()
    video, stage = PartitionSpec(split), PartitionSpec("stage")
    both, everywhere = PartitionSpec("stage", split), PartitionSpec()

    def of(keys: Any, leaf: Any) -> PartitionSpec:
        return stage if any(getattr(key, "key", None) == "layers" for key in keys) else everywhere

    weights = jax.tree_util.tree_map_with_path(of, variables)
    states = jax.tree.map(lambda leaf: both if leaf.ndim > 1 else stage, layers)
    given = (weights, (video, video, everywhere), video, states, both, stage)
    return jax.shard_map(
        run, mesh=mesh, in_specs=given, out_specs=(video, states, both), check_vma=False
    )
