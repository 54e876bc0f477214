"""Sources that render the procedural world on the accelerator while training runs."""

import dataclasses
import functools
import typing
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.arrays import Array, Float, Int, PyTree
from jvdm.compiling import Program
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.parallel.activations import using
from jvdm.parallel.mesh import batch_sharding, constrain_batch, parts, replicate
from jvdm.vae.latent_space import LatentSpace, load_latent_space
from jvdm.world.actions import held_actions, of_frames, play
from jvdm.world.captions import Style
from jvdm.world.clips import WorldClip, clips
from jvdm.world.scene import World, scene_key


@typing.no_type_check
@flax.struct.dataclass
class RenderState:
    """Rendering needs no memory, only to know the devices."""

    mesh: Mesh = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class WorldClips:
    """Source of fresh clips: step `n` renders clips `n * batch_size` and on.

    Batches are `WorldClip`s, frames in 0..1.
    """

    world: World
    split: str = "train"
    num_frames: int | None = None
    """Pixel frames of a clip, from its start; None for all."""
    stride: int = 1
    """Renders every `stride`-th frame."""

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> RenderState:
        """Returns a state that knows the mesh."""
        return RenderState(mesh)

    def feed(self, data: RenderState) -> RenderState:
        """Nothing to do on the host."""
        return data

    def saved(self, data: RenderState) -> bytes:
        """Batches follow from the step."""
        return b""

    def draw(
        self, data: RenderState, step: Int[Array, ""], batch_size: int
    ) -> tuple[WorldClip, RenderState]:
        """Renders the clips of `step`."""
        indices = constrain_batch(step * batch_size + jnp.arange(batch_size), data.mesh)
        options = {"num_frames": self.num_frames, "stride": self.stride}
        with using(data.mesh):
            batch = clips(self.world, self.split, indices, **options)
        return constrain_batch(batch, data.mesh), data


@typing.no_type_check
@flax.struct.dataclass
class LatentPool:
    """A ring of encoded clips; the leading axis `D` is split over devices."""

    latents: Float[Array, "D P F H W C"]  # bfloat16, standardised
    told: PyTree  # what is told of each clip, by the names of a batch: i32[D, P, ...]
    space: LatentSpace
    mesh: Mesh = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class WorldLatents:
    """Source of standardised latents and captions of fresh procedural clips.

    Every step renders and encodes `fresh` new clips into a ring of `pool`
    latents and draws its batch from the ring, so that each clip is seen about
    `batch_size / fresh` times and none is stored on disk. The ring is a function
    of the step: a resumed run refills it with the same clips.
    """

    world: World
    vae: nn.Module
    vae_weights: Path
    """Weights folder of the autoencoder that makes the latents."""
    pool: int = 16384
    fresh: int = 32
    split: str = "train"
    seed: int = 0
    skip: int = 0
    """Clips of the split to pass over, for a run that goes on from another one's weights."""
    caption_style: Style = "mixed"
    """What captions say, see `jvdm.world.captions.RULES`."""
    window: int | None = None
    """Latent frames that a step sees of a clip, which begin at any of its frames, all equally
    likely, as those that a stream has in work do; None is the whole clip."""
    timed: ClassVar[tuple[str, ...]] = ("latents",)
    """What a batch has for each latent frame."""

    def shapes(self, mesh: Mesh) -> LatentPool:
        """Returns the ring as shapes, split over `mesh`.

        Raises:
            ConfigError: If the ring or a turn cannot be split, or a clip is shorter than a window.
        """
        whole = self.vae.latent_frames(self.world.num_frames)
        if self.window is not None and not 1 <= self.window <= whole:
            what = f"a window of {self.window} latent frames"
            why = f"clips of {self.world.num_frames} frames have {whole}"
            raise ConfigError(what, why, "use a smaller one, or a larger --source.world.num-frames")
        if self.pool % self.fresh or self.fresh % parts(mesh):
            raise ConfigError(
                f"pool {self.pool}, fresh {self.fresh}, {parts(mesh)} parts of a batch",
                "the pool must be a multiple of fresh, and fresh of the number of parts",
            )
        space = load_latent_space(self.vae_weights)
        clip = jax.eval_shape(self._encoded, space, jnp.zeros((1,), jnp.int32))

        def ring(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (parts(mesh), self.pool // parts(mesh), *leaf.shape[1:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=batch_sharding(mesh))

        def copy(leaf: Array) -> jax.ShapeDtypeStruct:
            place = NamedSharding(mesh, PartitionSpec())
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        latents, told = jax.tree.map(ring, clip)
        return LatentPool(latents, told, jax.tree.map(copy, space), mesh)

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> LatentPool:
        """Returns the full ring after `position` steps, split over `mesh`."""
        shapes = self.shapes(mesh)

        def empty(leaf: jax.ShapeDtypeStruct) -> Array:
            return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)

        latents, told = jax.tree.map(empty, (shapes.latents, shapes.told))
        space = replicate(load_latent_space(self.vae_weights), mesh)
        data = LatentPool(latents, told, space, mesh)
        for turn in range(position, position + self.pool // self.fresh):
            data = _add(self, data, jnp.int32(turn))
        return data

    def feed(self, data: LatentPool) -> LatentPool:
        """Nothing to do on the host."""
        return data

    def saved(self, data: LatentPool) -> bytes:
        """The ring follows from the step."""
        return b""

    def draw(
        self, data: LatentPool, step: Int[Array, ""], batch_size: int
    ) -> tuple[dict[str, Array], LatentPool]:
        """Adds the clips of `step` to the ring and draws a batch, device by device."""
        data = self.add(data, step + self.pool // self.fresh)
        shards, size = data.latents.shape[:2]
        key = jax.random.fold_in(named(jax.random.key(self.seed), "draw"), step)
        picks = jax.random.randint(key, (shards, batch_size // shards), 0, size)
        picks = constrain_batch(picks, data.mesh)
        take = jax.vmap(lambda table, pick: table[pick])
        merge = functools.partial(_merge, batch_size)
        every = {"latents": data.latents, **data.told}
        batch = {name: merge(take(ring, picks)) for name, ring in every.items()}
        if self.window is not None:
            starts = batch["latents"].shape[1] - self.window + 1
            begins = jax.random.randint(named(key, "window"), (batch_size,), 0, starts)
            cut = jax.vmap(functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=self.window))
            batch |= {name: cut(batch[name], begins) for name in self.timed}
        return constrain_batch(batch, data.mesh), data

    def add(self, data: LatentPool, turn: Int[Array, ""]) -> LatentPool:
        """Renders and encodes the clips of one turn over the oldest ones."""
        shards, size = data.latents.shape[:2]
        first = self.skip + turn * self.fresh
        indices = constrain_batch(first + jnp.arange(self.fresh), data.mesh)
        slot = (turn % (size * shards // self.fresh)) * (self.fresh // shards)
        with using(data.mesh):  # of several devices none makes the clips of another one
            made = self._encoded(data.space, indices)
        latents, told = jax.tree.map(
            lambda ring, new: _write(ring, new, slot), (data.latents, data.told), made
        )
        return LatentPool(latents, told, data.space, data.mesh)

    def _encoded(self, space: LatentSpace, indices: Array) -> tuple[Array, dict[str, Array]]:
        clip = clips(self.world, self.split, indices, caption_style=self.caption_style)
        return self._latents(space, clip.video), {"tokens": clip.tokens}

    def _latents(self, space: LatentSpace, video: Array) -> Array:
        posterior = self.vae.bind({"params": space.params}).encode(video)
        return space.standardize(posterior.mean).astype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class PlayedLatents(WorldLatents):
    """The same of clips that are played (`jvdm.world.actions`): batches hold `actions` too.

    An action is held for the frames of a latent frame.
    """

    timed: ClassVar[tuple[str, ...]] = ("latents", "actions")
    keep: float = 0.5
    """Chance that the action of a latent frame is that of the one before it."""

    def _encoded(self, space: LatentSpace, indices: Array) -> tuple[Array, dict[str, Array]]:
        count, frames = self.vae.latent_frames(self.world.num_frames), self.world.num_frames

        def drawn(index: Array) -> Array:
            return held_actions(named(scene_key(self.split, index), "actions"), count, self.keep)

        actions = jax.vmap(drawn)(indices)
        each = of_frames(actions, frames)
        clip = play(self.world, self.split, indices, each, caption_style=self.caption_style)
        told = {"tokens": clip.tokens, "actions": actions}
        return self._latents(space, clip.video), told


@functools.partial(Program, static_argnums=0, donate_argnums=1)
def _add(source: WorldLatents, data: LatentPool, turn: Int[Array, ""]) -> LatentPool:
    return source.add(data, turn)


def _merge(batch_size: int, x: Array) -> Array:
    return x.reshape(batch_size, *x.shape[2:])


def _write(ring: Array, new: Array, slot: Array) -> Array:
    """Writes `new [D * n, ...]` into `ring [D, P, ...]` from `slot` on."""
    parts = new.reshape(ring.shape[0], -1, *ring.shape[2:])
    start = (0, slot, *(0,) * (ring.ndim - 2))
    return jax.lax.dynamic_update_slice(ring, parts, start)


__all__ = ["LatentPool", "PlayedLatents", "RenderState", "WorldClips", "WorldLatents"]
