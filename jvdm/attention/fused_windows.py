"""Attention in windows of frames that overlap, whose results are averaged."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array
from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.errors import ConfigError
from jvdm.samplers import Tiles


@dataclasses.dataclass(frozen=True)
class FusedWindows(Policy):
    """Every window of frames attends among itself; a frame gets the mean of its windows.

    So a network sees no more frames at once than it was trained on, in a clip of any length, and
    what is not attention (text, the layers between) sees the whole clip. The mean is of attended
    values, weighted less towards the ends of a window: it is no softmax over all windows.

    Reference: FreeNoise, arXiv:2310.15169, section 3.3: there among the same places of all frames,
    here among all tokens of the frames, as networks of the newer kind attend.
    """

    frames: int = 8
    """Latent frames of a window; a clip that is no longer is attended to whole."""
    stride: int = 4
    """Latent frames from a window to the next."""

    def init(self, grid: TokenGrid) -> None:
        """Refuses windows that leave frames out."""
        if not 1 <= self.stride <= self.frames:
            raise ConfigError(
                f"windows of {self.frames} latent frames, {self.stride} apart",
                "every frame lies in a window",
                f"use a stride of 1 to {max(self.frames, 1)}",
            )

    def select(self, q, k, v, state, call: AttentionCall):
        """Allows all tokens of what it is given, one window."""
        return None, state

    def attend(self, q, k, v, state, call: AttentionCall, among: Among):
        """Attends in all windows side by side, then takes the means."""
        k = call.turn(k)
        tiles, count = Tiles(self.frames, self.frames - self.stride), call.grid.frames
        starts = tiles.places(count, 1, 1)[:, 0]
        if len(starts) == 1:
            return among(q, k, v, None), state
        whole = (len(q), count, call.grid.tokens_per_frame, *q.shape[2:])
        windows = starts[:, None] + np.arange(self.frames)

        def cut(x: Array) -> Array:
            parts = x.reshape(whole)[:, windows]
            return parts.reshape(-1, self.frames * whole[2], *whole[3:])

        out = among(cut(q), cut(k), cut(v), None).astype(jnp.float32)
        shares = jnp.asarray(tiles.shares(count, 1, 1)).reshape(1, *windows.shape, 1, 1, 1)
        parts = shares * out.reshape(whole[0], *windows.shape, *whole[2:])
        means = jnp.zeros(whole, jnp.float32).at[:, windows].add(parts)
        return means.reshape(q.shape).astype(v.dtype), state
