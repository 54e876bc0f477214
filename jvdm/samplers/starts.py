"""Rows for training students of few steps: the levels where their jumps begin."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Key
from jvdm.samplers.timesteps import TrainTimes, all_noisy, per_clip, uniform_integer


@dataclass(frozen=True)
class SegmentStarts:
    """One level per clip, any of these with equal probabilities: where jumps begin.

    Attributes:
        levels: The levels, above 0.
    """

    levels: tuple[float, ...]

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns equal levels within each clip."""
        levels = jnp.asarray(self.levels, jnp.float32)

        def clip(key: Key) -> Array:
            return levels[uniform_integer(jax.random.uniform(key), len(self.levels))]

        t = per_clip(clip, key, batch)
        return all_noisy(jnp.broadcast_to(t[:, None], (batch, latent_frames)))


@dataclass(frozen=True)
class StreamStarts:
    """Any row of a wave whose chunks are segments apart: where jumps in a stream's buffer begin.

    With a lag of all segments one chunk is in work behind true ones, as Causal Forcing trains
    (thu-ml/Causal-Forcing, consistency stage). A chunk that waits is pure noise and one that is
    done is clean; neither is trained, since neither moves.

    Attributes:
        levels: Levels above 0, `each` for a segment, from noise on; all chunks have the same place
            in their segments.
        chunk: Latent frames of a chunk; the last may be shorter.
        each: Levels of a segment.
        full: Share of clips with as many chunks in work as there can be, as a stream always has.
        lag: Segments between neighbouring chunks.

    Reference: StreamDiT, arXiv:2507.03745, multistep distillation.
    """

    levels: tuple[float, ...]
    chunk: int = 2
    each: int = 1
    full: float = 0.5
    lag: int = 1

    def __call__(self, key: Key, batch: int, latent_frames: int) -> TrainTimes:
        """Returns levels that rise from chunk to chunk, by segments."""
        levels, segments = jnp.asarray(self.levels, jnp.float32), len(self.levels) // self.each
        chunk, last = jnp.arange(latent_frames) // self.chunk, (latent_frames - 1) // self.chunk
        chunk, last = self.lag * chunk, self.lag * last
        ends = sorted((segments - 1, last))

        def clip(key: Key) -> TrainTimes:
            draws = jax.random.uniform(key, (3,))
            most = ends[0] + uniform_integer(draws[0], ends[1] - ends[0] + 1)
            any_row = uniform_integer(draws[0], segments + last)
            made = jnp.where(draws[2] < self.full, most, any_row) - chunk
            moving = (made >= 0) & (made < segments)
            place = made * self.each + uniform_integer(draws[1], self.each)
            t = jnp.where(made < 0, levels[0], jnp.where(moving, levels[place], 0.0))
            return TrainTimes(t, moving.astype(jnp.float32))

        return per_clip(clip, key, batch)
