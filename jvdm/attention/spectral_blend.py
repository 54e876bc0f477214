"""Attention to all frames for what is slow, to near frames for what is fast."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.errors import ConfigError
from jvdm.samplers import mix_frequencies
from pallas_kernels import BlockMask


@dataclasses.dataclass(frozen=True)
class SpectralBlend(Policy):
    """Low frequencies of attention among all frames, high ones of attention among near frames.

    Where a clip is longer than those of training, attention to all of it keeps what is the same
    throughout and blurs the details; attention to near frames keeps these and forgets the rest.

    Reference: FreeLong, arXiv:2407.19918, section 4: SpectralBlend temporal attention; there among
    the same places of all frames, here among all tokens of the frames.
    """

    frames: int = 9
    """Latent frames that are near: as many around each, at the ends of a clip to one side."""
    cutoff: float = 0.25
    """Deviation of the Gaussian filter in shares of the highest frequency, in time and space."""

    def init(self, grid: TokenGrid) -> None:
        """Refuses a window without frames, and a filter that lets nothing through."""
        if self.frames < 1 or not self.cutoff > 0:
            raise ConfigError(
                f"a blend of {self.frames} near frames with cutoff {self.cutoff}",
                "a frame is near itself, and a filter is above 0",
                "use frames=9 and cutoff=0.25",
            )

    def select(self, q, k, v, state, call: AttentionCall):
        """Allows the tokens of near frames."""
        allowed = self.near(call.grid.frames)[None, None]
        sizes: Any = dict.fromkeys(("q_len", "kv_len"), q.shape[1])
        sizes |= dict.fromkeys(("block_q", "block_kv"), call.grid.tokens_per_frame)
        return BlockMask.from_dense(allowed, **sizes), state

    def near(self, count: int) -> np.ndarray:
        """Returns which frame `[F, F]` of a clip reads which: the window is always full."""
        frames = np.arange(count)
        first = np.clip(frames - self.frames // 2, 0, max(count - self.frames, 0))
        ahead = frames[None] - first[:, None]
        return (ahead >= 0) & (ahead < self.frames)

    def attend(self, q, k, v, state, call: AttentionCall, among: Among):
        """Attends twice and joins the two by frequency, in float32."""
        k, grid = call.turn(k), call.grid
        everywhere = among(q, k, v, None)
        if grid.frames <= self.frames:
            return everywhere, state
        mask, state = self.select(q, k, v, state, call)
        layout = (len(q), grid.frames, grid.height, grid.width, -1)
        slow, fast = (
            x.astype(jnp.float32).reshape(layout) for x in (everywhere, among(q, k, v, mask))
        )
        joined = mix_frequencies(slow, fast, self.cutoff)
        return joined.reshape(q.shape).astype(v.dtype), state
