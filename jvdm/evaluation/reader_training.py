"""Training of the reader that judges generated clips; its scenes have their own seeds."""

import dataclasses
import functools
import typing
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import Array, Frames, Int, Key, PyTree
from jvdm.errors import ConfigError
from jvdm.evaluation.reader import (
    NUM_FRAMES,
    Reader,
    Reading,
    answers_for,
    attributes_right,
    describe,
    present_colors,
    shrink,
)
from jvdm.parallel.mesh import constrain_batch, replicate
from jvdm.vae.latent_space import LatentSpace, load_latent_space
from jvdm.weights.package import Component, Components
from jvdm.world.clips import WorldClip, clips
from jvdm.world.scene import Facts, World

HELD_OUT_BATCH = 64
_BLUR, _NOISE = 1.0, 0.06  # Strongest augmentation: a 2 x 2 mean, standard deviation.


@dataclasses.dataclass(frozen=True)
class ClipReading:
    """Frames to facts; batches are `WorldClip`s of nine frames (`ReaderClips`)."""

    reader: Reader
    world: World
    """World of the held-out clips; its stride gives nine frames."""
    held_out: int = 512
    """Clips of split `reader_val` whose accuracy is measured at the end."""

    def __post_init__(self) -> None:
        """Refuses accuracies of nothing."""
        if self.held_out < 1:
            what = f"--objective.held-out is {self.held_out}"
            raise ConfigError(what, "accuracies need clips", f"use {HELD_OUT_BATCH} or more")

    def init(self, key: Key) -> PyTree:
        """Returns fresh parameters."""
        return self.reader.init(key, jnp.zeros((1, NUM_FRAMES, 64, 64, 3)))["params"]

    def loss(self, params: PyTree, batch: WorldClip, call: Any) -> tuple[Array, dict[str, Array]]:
        """Returns the sum of the cross-entropies of all answers, on degraded frames.

        `call` is a `TrainCall` of training; its `key` draws how frames are degraded.
        """
        frames = degrade(shrink(batch.video), call.key)
        reading = self.reader.bind({"params": params})(frames)
        terms = cross_entropies(reading, batch.facts)
        right = attributes_right(reading, batch.facts)
        shares = {
            f"{name}_accuracy": (ok * on).sum() / on.sum() for name, (ok, on) in right.items()
        }
        return jnp.asarray(sum(terms.values())) + 2.0 * terms["present"], {**terms, **shares}

    def components(self, params: PyTree) -> Components:
        """Returns `reader.safetensors`."""
        return {"reader": Component(self.reader, params)}

    def summary(self, params: PyTree) -> dict[str, float]:
        """Returns the accuracy of every answer on held-out true clips."""
        judge = jax.jit(self._judge)
        count = min(self.held_out, HELD_OUT_BATCH)
        indices = jnp.arange(self.held_out // count * count).reshape(-1, count)
        parts = [judge(params, _held_out(self.world, batch)) for batch in indices]
        sums = jax.tree.map(lambda *leaves: float(np.sum(leaves)), *parts)
        return {f"{name}_accuracy": ok / max(on, 1.0) for name, (ok, on) in sums.items()}

    def check(self, params: PyTree) -> None:
        """Traces what `summary` measures."""
        indices = jax.ShapeDtypeStruct((1,), jnp.int32)
        clip = jax.eval_shape(functools.partial(_held_out, self.world), indices)
        jax.eval_shape(self._judge, params, clip)

    def _judge(self, params: PyTree, clip: WorldClip) -> dict[str, tuple[Array, Array]]:
        reading = self.reader.bind({"params": params})(clip.video)
        right = attributes_right(reading, clip.facts)
        return {name: (jnp.sum(ok * on), jnp.sum(on)) for name, (ok, on) in right.items()}


@dataclasses.dataclass(frozen=True)
class ReadingPreview:
    """Held-out clips with what was read of them."""

    count: int = 8

    def render(
        self, objective: ClipReading, params: PyTree, data: PyTree
    ) -> tuple[Frames, list[str]]:
        """Returns true clips and what the reader says."""
        clip = _held_out(objective.world, jnp.arange(self.count))
        look = jax.jit(lambda p, x: objective.reader.bind({"params": p})(x))
        reading = jax.device_get(look(params, clip.video))
        each = [jax.tree.map(lambda x, n=n: x[n], reading) for n in range(self.count)]
        return clip.video, [describe(one) for one in each]


@functools.partial(jax.jit, static_argnums=0)
def _held_out(world: World, indices: Int[Array, " B"]) -> WorldClip:
    """Makes clips of split `reader_val` as the reader sees them; one program for all calls."""
    stride = (world.num_frames - 1) // (NUM_FRAMES - 1)
    clip = clips(world, "reader_val", indices, stride=stride, held_out="any")
    return clip._replace(video=shrink(clip.video))


def degrade(frames: Frames, key: Key) -> Frames:
    """Blurs each clip by a random share of a 2 x 2 mean and adds noise of random strength."""
    keys = jax.random.split(key, 3)
    per_clip = (frames.shape[0], 1, 1, 1, 1)
    down = (frames + jnp.roll(frames, 1, 2)) / 2
    blurred = (down + jnp.roll(down, 1, 3)) / 2
    share = _BLUR * jax.random.uniform(keys[0], per_clip)
    strength = _NOISE * jax.random.uniform(keys[1], per_clip)
    noise = jax.random.normal(keys[2], frames.shape)
    return jnp.clip(frames + share * (blurred - frames) + strength * noise, 0.0, 1.0)


def cross_entropies(reading: Reading, facts: Facts) -> dict[str, Array]:
    """Mean cross-entropy of every answer; those about objects count active slots alone."""
    present = present_colors(facts)
    logit = reading.present
    active = facts.active.astype(jnp.float32)
    terms = {
        "present": (jax.nn.softplus(logit) - present * logit).mean(),
        "camera": -_log_chance(reading.camera, facts.camera).mean(),
    }
    for name in ("shape", "size", "verb", "speed"):
        logits = answers_for(getattr(reading, name), facts.color)
        chance = _log_chance(logits, getattr(facts, name))
        terms[name] = -(chance * active).sum() / active.sum()
    return terms


def _log_chance(logits: Array, label: Array) -> Array:
    chances = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(chances, label[..., None], -1)[..., 0]


@typing.no_type_check
@flax.struct.dataclass
class ReaderData:
    """The devices, and the autoencoder whose artefacts the reader must bear, if any."""

    space: LatentSpace | None
    mesh: Mesh = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class ReaderClips:
    """Source of nine-frame clips of split `reader`, a share of them as the VAE shows them.

    Reconstructions need every pixel of every frame and cost twenty times a plain clip:
    with a small share of them the reader still trains at thousands of clips per second.
    """

    world: World
    """128 x 128 for reconstructions; else 64 x 64 is enough."""
    vae: nn.Module | None = None
    vae_weights: Path | None = None
    """Weights folder of the autoencoder; needed with `vae`."""
    reconstructed: float = 1 / 16
    """Share of each batch, when there is an autoencoder."""

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> ReaderData:
        """Loads the autoencoder."""
        if self.vae is None or self.vae_weights is None:
            return ReaderData(None, mesh)
        return ReaderData(replicate(load_latent_space(self.vae_weights), mesh), mesh)

    def feed(self, data: ReaderData) -> ReaderData:
        """Nothing to do on the host."""
        return data

    def saved(self, data: ReaderData) -> bytes:
        """Batches follow from the step."""
        return b""

    def draw(
        self, data: ReaderData, step: Int[Array, ""], batch_size: int
    ) -> tuple[WorldClip, ReaderData]:
        """Renders the clips of `step`, held-out pairs among them: the reader must know all."""
        stride = (self.world.num_frames - 1) // (NUM_FRAMES - 1)
        coded = 0 if data.space is None else round(self.reconstructed * batch_size)
        first = step * batch_size
        plain = clips(
            dataclasses.replace(self.world, height=64, width=64),
            "reader",
            constrain_batch(first + coded + jnp.arange(batch_size - coded), data.mesh),
            stride=stride,
            held_out="any",
        )
        if coded:
            whole = clips(self.world, "reader", first + jnp.arange(coded), held_out="any")
            both = (self._reconstruct(data, whole, stride), plain)
            plain = jax.tree.map(lambda *parts: jnp.concatenate(parts), *both)
        return constrain_batch(plain, data.mesh), data

    def _reconstruct(self, data: ReaderData, clip: WorldClip, stride: int) -> WorldClip:
        assert self.vae is not None and data.space is not None
        video = self.vae.bind({"params": data.space.params})(clip.video)
        facts = clip.facts
        facts = facts._replace(
            position=facts.position[:, ::stride], velocity=facts.velocity[:, ::stride]
        )
        return clip._replace(video=shrink(jnp.clip(video, 0.0, 1.0)), facts=facts)
