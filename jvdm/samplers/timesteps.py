"""Rows for training: which level each frame of each clip is trained at.

The matrix of a run is in `matrices.py`; here one row of some run is drawn for each clip. A sampler
is a frozen object, called as `sampler(key, batch, latent_frames)` inside the
jitted step. The draws of a clip are addressed by its index in the batch: another batch
size does not change them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

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

        t = per_clip(clip, key, batch)
        return all_noisy(jnp.broadcast_to(t, (batch, latent_frames)))


@dataclass(frozen=True)
class Drawn:
    """One level per clip, or per frame, by a law of a uniform draw `u`.

    Attributes:
        law: `uniform` is `u`, `mode` is `1 - u - scale (cos^2(pi u / 2) - 1 + u)`, `cosmap` is
            `1 - 1 / (tan(pi u / 2) + 1)`, the law of a cosine schedule.
        scale: Of `mode`: positive is frequent in the middle, negative at both ends.
        per_frame: Whether frames have levels of their own.
        stratified: Whether each of the `B` clips of a batch has its own of `B` equal shares of the
            law, in their order: the gradient varies less (arXiv:2107.00630, appendix I).

    Reference: Esser et al., arXiv:2403.03206, section 3.1.

    Raises:
        ConfigError: If the scale lies outside, or frames of their own are to be stratified.
    """

    law: Literal["uniform", "mode", "cosmap"] = "uniform"
    scale: float = 1.29
    per_frame: bool = False
    stratified: bool = False

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            what, why = f"a mode of scale {self.scale}", "levels would leave 0..1 or turn back"
            raise ConfigError(what, why, "use -1 to 1.75; 1.29 is usual")
        if self.per_frame and self.stratified:
            what, why = "levels of frames in equal shares", "clips of a batch have one share each"
            raise ConfigError(what, why, "leave per_frame or stratified out")

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns the levels."""
        count = latent_frames if self.per_frame else 1
        u = per_clip(lambda key: jax.random.uniform(key, (count,)), key, batch)
        if self.stratified:
            u = (jnp.arange(batch, dtype=u.dtype)[:, None] + u) / batch
        t = {
            "uniform": u,
            "mode": 1.0 - u - self.scale * (jnp.cos(0.5 * jnp.pi * u) ** 2 - 1.0 + u),
            "cosmap": 1.0 - 1.0 / (jnp.tan(0.5 * jnp.pi * u) + 1.0),
        }[self.law]
        return all_noisy(jnp.broadcast_to(jnp.clip(t, 0.0, 1.0), (batch, latent_frames)))


@dataclass(frozen=True)
class Shifted:
    """The levels of `inner`, moved towards noise (`shift_levels`); clean context stays clean.

    Raises:
        ConfigError: If the shift is not positive.
    """

    inner: TimestepSampler = Synchronous()
    shift: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ConfigError(f"levels shifted by {self.shift}", "", "use a positive number")

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns the levels."""
        times = self.inner(key, batch, latent_frames)
        return times._replace(t=shift_levels(times.t, self.shift))


@dataclass(frozen=True)
class AlongLevels:
    """One level per clip, drawn evenly along the grid of a sampling run.

    Where the grid has many levels, many clips are trained: a grid that is shifted towards noise
    moves training with it (Esser et al., arXiv:2403.03206, section 5.3.2).

    Attributes:
        levels: The grid, descending; between two of its levels the place is even.
    """

    levels: tuple[float, ...] = ()

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns equal levels within each clip."""
        grid = jnp.asarray(self.levels, jnp.float32)

        def clip(key: Key) -> Array:
            place = jax.random.uniform(key, (1,)) * (len(grid) - 1)
            return jnp.interp(place, jnp.arange(len(grid), dtype=jnp.float32), grid)

        t = per_clip(clip, key, batch)
        return all_noisy(jnp.broadcast_to(t, (batch, latent_frames)))


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

        return all_noisy(per_clip(clip, key, batch))


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
            lag = jnp.asarray(self.lags)[uniform_integer(draws[0], len(self.lags))]
            size = jnp.asarray(self.blocks)[uniform_integer(draws[1], len(self.blocks))]
            block = frames // size
            row = uniform_integer(draws[2], self.num_steps + lag * block[-1])
            steps_made = row - lag * block
            index = jnp.clip(steps_made, 0, self.num_steps)
            next_index = jnp.clip(steps_made + 1, 0, self.num_steps)
            way = self.jitter * draws[3:]
            t = levels[index] + way * (levels[next_index] - levels[index])
            return TrainTimes(t, (steps_made < self.num_steps).astype(jnp.float32))

        return per_clip(clip, key, batch)


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
            length = 1 + uniform_integer(draws[0], latent_frames - 1)
            prefix = frames < jnp.where(draws[1] < self.first_only, 1, length)
            ends = (frames == 0) | (frames == latent_frames - 1)
            use_ends = (draws[2] < self.ends) & (latent_frames > 2)
            return jnp.where(use_ends, ends, prefix)

        clean = per_clip(clip, named(key, "prefix"), batch)
        return TrainTimes(jnp.where(clean, 0.0, times.t), jnp.where(clean, 0.0, times.loss_mask))


@dataclass(frozen=True)
class Probabilistic:
    """One uniform level per clip, or with some probability one per frame (PTSS).

    Attributes:
        probability: How often frames have levels of their own.
        per_batch: Toss one coin for the whole batch, as the published program does; a coin for
            each clip varies the gradient less.

    Reference: FVDM, arXiv:2410.03160, probabilistic timestep sampling, with 0.2.
    """

    probability: float = 0.2
    per_batch: bool = False

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns uniform levels."""
        coin = jax.random.uniform(named(key, "coin"))

        def clip(key: Key) -> Array:
            draws = jax.random.uniform(key, (2 + latent_frames,))
            own = (coin if self.per_batch else draws[0]) < self.probability
            return jnp.where(own, draws[2:], draws[1])

        return all_noisy(per_clip(clip, named(key, "clips"), batch))


@dataclass(frozen=True)
class NonDecreasing:
    """Levels that never fall from frame to frame (FoPP).

    A frame and its level are drawn evenly, then all non-decreasing levels of the frames before and
    after are equally likely: those are sorted uniform draws below and above. This is the limit of
    the published tables for many steps. Both ends are twice as frequent as the middle, and frames
    that differ by nearly all noise are rare: `LagRows` covers waves better.

    Reference: AR-Diffusion, arXiv:2503.07418, frame-oriented probability propagation.
    """

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns ascending levels."""
        frames = jnp.arange(latent_frames)

        def clip(key: Key) -> Array:
            draws = jax.random.uniform(key, (2 + latent_frames,))
            chosen, level = uniform_integer(draws[0], latent_frames), draws[1]
            below, above = level * draws[2:], level + (1.0 - level) * draws[2:]
            t = jnp.where(frames < chosen, below, jnp.where(frames > chosen, above, level))
            return jnp.sort(t)

        return all_noisy(per_clip(clip, key, batch))


@dataclass(frozen=True)
class StreamPartitions:
    """Rows of a rolling buffer: chunk `i` of `N` is anywhere in its segment `[i / N, (i + 1) / N]`.

    Each clip draws the frames per chunk; as many as the clip has is the synchronous run, one is
    the diagonal. Chunks have levels of their own in their segments.

    Attributes:
        blocks: Frames per chunk to choose from; the last chunk may be shorter.

    Reference: StreamDiT, arXiv:2507.03745, mixed training without reference frames; there the
    first chunk is the noisiest.
    """

    blocks: tuple[int, ...] = (1, 2, 4, 8, 16)

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns levels that rise from chunk to chunk."""
        frames = jnp.arange(latent_frames)

        def clip(key: Key) -> Array:
            draws = jax.random.uniform(key, (1 + latent_frames,))
            size = jnp.asarray(self.blocks)[uniform_integer(draws[0], len(self.blocks))]
            chunk = frames // size
            return (chunk + draws[1:][chunk]) / (chunk[-1] + 1)

        return all_noisy(per_clip(clip, key, batch))


@dataclass(frozen=True)
class Blockwise:
    """Frames of a block share the level that `inner` gives the first of them.

    Attributes:
        inner: Levels of the blocks.
        block: Latent frames per block.
    """

    inner: TimestepSampler = Independent()
    block: int = 3

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns levels that are equal within blocks."""
        times = self.inner(key, batch, latent_frames)
        first = jnp.arange(latent_frames) // self.block * self.block
        return TrainTimes(times.t[:, first], times.loss_mask[:, first])


@dataclass(frozen=True)
class MaskedTasks:
    """Clean frames of one of six tasks, without loss; the other frames follow `inner`.

    Given are: the first half (prediction), the last half (backwards), every `stride`-th frame
    (interpolation), nothing, one frame, or each frame with the probability `share`. Some frame is
    always left to learn.

    Attributes:
        inner: Levels of the other frames.
        weights: How often each task is drawn, in this order; any positive scale.
        stride: Distance of given frames in interpolation.
        share: Share of frames that is given in the last task.

    Reference: VDT, arXiv:2305.13311, unified spatial-temporal mask modelling, its tasks in time.
    """

    inner: TimestepSampler = Synchronous()
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    stride: int = 4
    share: float = 0.2

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns the levels of `inner` with given frames."""
        times = self.inner(named(key, "inner"), batch, latent_frames)
        frames, half = jnp.arange(latent_frames), latent_frames // 2
        log_weights = jnp.log(jnp.asarray(self.weights, jnp.float32))

        def clip(key: Key) -> Array:
            task = jax.random.categorical(named(key, "task"), log_weights)
            draws = jax.random.uniform(key, (1 + latent_frames,))
            tasks = [
                frames < half,
                frames >= latent_frames - half,
                frames % self.stride == 0,
                frames < 0,
                frames == uniform_integer(draws[0], latent_frames),
                draws[1:] < self.share,
            ]
            given = jnp.stack(tasks)[task]
            return given & ~jnp.all(given)

        given = per_clip(clip, named(key, "tasks"), batch)
        return TrainTimes(jnp.where(given, 0.0, times.t), jnp.where(given, 0.0, times.loss_mask))


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
        choice = per_clip(
            lambda key: jax.random.categorical(key, log_weights),
            named(key, "choice"),
            batch,
        )

        def select(*values: Array) -> Array:
            return jnp.stack(values)[choice, jnp.arange(batch)]

        return jax.tree.map(select, *drawn)


class RowDensity(NamedTuple):
    """How often a sampler draws which levels; a histogram sums to 1.

    Attributes:
        levels: f64[F, bins], of the levels of each frame.
        neighbours: f64[bins, bins], of the levels of a frame and of the one after it.
        trained: f64[F], share of clips in which a frame counts for the loss.
    """

    levels: np.ndarray
    neighbours: np.ndarray
    trained: np.ndarray


def report_rows(
    sampler: TimestepSampler, key: Key, latent_frames: int, clips: int = 4096, bins: int = 10
) -> RowDensity:
    """Draws rows and counts their levels in equal bins from clean to noise.

    Args:
        sampler: The sampler.
        key: Key of the draws.
        latent_frames: Frames per clip.
        clips: Clips to draw.
        bins: Number of bins.
    """
    times = sampler(key, clips, latent_frames)
    place = np.minimum((np.asarray(times.t, np.float64) * bins).astype(int), bins - 1)
    levels = np.stack([np.bincount(column, minlength=bins) for column in place.T]) / clips
    pairs = np.zeros((bins, bins))
    np.add.at(pairs, (place[:, :-1], place[:, 1:]), 1.0)
    trained = np.asarray(times.loss_mask, np.float64).mean(axis=0)
    return RowDensity(levels, pairs / max(pairs.sum(), 1.0), trained)


def per_clip(draw: Callable[[Key], PyTree], key: Key, batch: int) -> PyTree:
    """Calls `draw` for every clip with the clip's own key."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    return jax.vmap(draw)(keys)


def _logit_normal(key: Key, mean: float, std: float, count: int) -> Float[Array, " F"]:
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (count,), jnp.float32))


def all_noisy(t: NoiseLevels) -> TrainTimes:
    """Returns levels of frames that all count for the loss."""
    return TrainTimes(t, jnp.ones_like(t))


def uniform_integer(uniform: Float[Array, ""], count: int | Int[Array, ""]) -> Int[Array, ""]:
    """Turns a uniform draw from [0, 1) into one of `0..count-1`."""
    # Rounding may take the product up to `count`.
    return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)
