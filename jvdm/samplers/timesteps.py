"""Rows for training: which level each frame of each clip is trained at.

The matrix of a run is in `matrices.py`; here one row of some run is drawn for each clip.

A sampler is a frozen object, called as `sampler(key, batch, latent_frames)` inside the
jitted step. The draws of a clip are addressed by its index in the batch: another batch
size does not change them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers.levels import linspace_levels, shift_levels


class TrainTimes(NamedTuple):
    """Levels of a training batch.

    Attributes:
        t: f32[B, F], the noise level of each frame.
        loss_mask: f32[B, F], 1 where the frame counts for the loss, 0 on context.
    """

    t: Float[Array, "B F"]
    loss_mask: Float[Array, "B F"]


@runtime_checkable
class TimestepSampler(Protocol):
    """Draws the levels of a training batch; both counts are static."""

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns the levels and the loss mask of `batch` clips."""
        ...


@dataclass(frozen=True)
class Synchronous:
    """One logit-normal level per clip: `sigmoid(mean + std * normal)`.

    Reference: Esser et al., arXiv:2403.03206.
    """

    mean: float = 0.3
    std: float = 1.2

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns equal levels within each clip."""

        def clip(key: Key) -> Array:
            return _logit_normal(key, self.mean, self.std, 1)

        t = _per_clip(clip, key, batch)
        return _all_noisy(jnp.broadcast_to(t, (batch, latent_frames)))


@dataclass(frozen=True)
class Independent:
    """One logit-normal level per frame, so that any row of any matrix is met.

    Reference: Chen et al., Diffusion Forcing, arXiv:2407.01392.
    """

    mean: float = 0.3
    std: float = 1.5

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns independent levels."""

        def clip(key: Key) -> Array:
            return _logit_normal(key, self.mean, self.std, latent_frames)

        return _all_noisy(_per_clip(clip, key, batch))


@dataclass(frozen=True)
class LagRows:
    """A random row of a random lag matrix: what sampling in waves will show the network.

    Each clip draws a lag, a block size and one row of that matrix (`lag_matrix`) with
    equal probabilities. A frame in work is moved to a random place between its level and
    its next one; a frame that waits is pure noise; a finished one is clean context.

    Attributes:
        num_steps: Steps per frame of the matrices.
        lags: Lags to choose from.
        blocks: Block sizes to choose from.
        shift: Shift of the level grid.
        jitter: Largest share of the way to its next level that a frame is moved; with 0
            all levels are those of the matrix.
    """

    num_steps: int = 16
    lags: tuple[int, ...] = (1, 2, 4, 8, 16)
    blocks: tuple[int, ...] = (1, 2, 4)
    shift: float = 3.0
    jitter: float = 1.0

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns the levels of one row per clip."""
        levels = shift_levels(linspace_levels(self.num_steps), self.shift)
        frames = jnp.arange(latent_frames)

        def clip(key: Key) -> TrainTimes:
            draws = jax.random.uniform(key, (3 + latent_frames,))
            lag = jnp.asarray(self.lags)[_uniform_integer(draws[0], len(self.lags))]
            size = jnp.asarray(self.blocks)[_uniform_integer(draws[1], len(self.blocks))]
            block = frames // size
            row = _uniform_integer(draws[2], self.num_steps + lag * block[-1])
            steps_made = row - lag * block
            index = jnp.clip(steps_made, 0, self.num_steps)
            next_index = jnp.clip(steps_made + 1, 0, self.num_steps)
            way = self.jitter * draws[3:]
            t = levels[index] + way * (levels[next_index] - levels[index])
            return TrainTimes(t, (steps_made < self.num_steps).astype(jnp.float32))

        return _per_clip(clip, key, batch)


@dataclass(frozen=True)
class CleanPrefix:
    """Clean context frames, without loss; the other frames follow `inner`.

    These are the rows of image to video, continuation and interpolation. A clip of one
    frame stays as it is: something must be left to learn.

    Attributes:
        inner: Levels of the other frames.
        first_only: Probability that only the first frame of a prefix is clean; other
            prefixes have a uniform length of 1 to `F - 1`.
        ends: Probability that the first and the last frame are clean instead of a
            prefix.
    """

    inner: TimestepSampler = Synchronous()
    first_only: float = 0.5
    ends: float = 0.2

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns the levels of `inner` with clean context."""
        times = self.inner(named(key, "inner"), batch, latent_frames)
        if latent_frames == 1:
            return times
        frames = jnp.arange(latent_frames)

        def clip(key: Key) -> Array:
            draws = jax.random.uniform(key, (3,))
            length = 1 + _uniform_integer(draws[0], latent_frames - 1)
            prefix = frames < jnp.where(draws[1] < self.first_only, 1, length)
            ends = (frames == 0) | (frames == latent_frames - 1)
            use_ends = (draws[2] < self.ends) & (latent_frames > 2)
            return jnp.where(use_ends, ends, prefix)

        clean = _per_clip(clip, named(key, "prefix"), batch)
        return TrainTimes(jnp.where(clean, 0.0, times.t), jnp.where(clean, 0.0, times.loss_mask))


@dataclass(frozen=True)
class Mixture:
    """Draws every clip from one of several samplers.

    Attributes:
        samplers: The samplers.
        weights: How often each is chosen; any positive scale.

    Raises:
        ConfigError: If there is no sampler that could be chosen.
    """

    samplers: tuple[TimestepSampler, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        usable = all(0 <= weight < math.inf for weight in self.weights) and any(self.weights)
        if len(self.samplers) != len(self.weights) or not usable:
            raise ConfigError(
                f"a mixture of {len(self.samplers)} samplers has weights {self.weights}",
                "each sampler needs one weight of 0 or more, and one of them is above 0",
                "give as many weights as samplers",
            )

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns the levels of the chosen sampler for each clip."""
        drawn = [
            sampler(jax.random.fold_in(key, i), batch, latent_frames)
            for i, sampler in enumerate(self.samplers)
        ]
        log_weights = jnp.log(jnp.asarray(self.weights))
        choice = _per_clip(
            lambda key: jax.random.categorical(key, log_weights),
            named(key, "choice"),
            batch,
        )

        def select(*values: Array) -> Array:
            return jnp.stack(values)[choice, jnp.arange(batch)]

        return jax.tree.map(select, *drawn)


def _per_clip(draw: Callable[[Key], PyTree], key: Key, batch: int) -> PyTree:
    """Calls `draw` for every clip with the clip's own key."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    return jax.vmap(draw)(keys)


def _logit_normal(key: Key, mean: float, std: float, count: int) -> Float[Array, " F"]:
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (count,), jnp.float32))


def _all_noisy(t: NoiseLevels) -> TrainTimes:
    return TrainTimes(t, jnp.ones_like(t))


def _uniform_integer(uniform: Float[Array, ""], count: int | Int[Array, ""]) -> Int[Array, ""]:
    """Turns a uniform draw from [0, 1) into one of `0..count-1`."""
    # Rounding may take the product up to `count`.
    return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)
