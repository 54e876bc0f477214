"""Guidance whose scale changes along the video, or along the run."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Row
from jvdm.samplers.guidance import BranchWeights, ClassifierFree, Guidance, Scale
from jvdm.samplers.matrices import TimestepMatrix, times

_rule = jax.tree_util.register_dataclass


def check_weights(rule: Guidance, matrix: TimestepMatrix) -> None:
    """Refuses a rule whose weights do not sum to 1 in a row of a run; asks no network.

    Rules that combine branches in a way of their own are left alone.

    Raises:
        ConfigError: It names the row and the frame.
    """
    if type(rule).combine is not Guidance.combine:
        return
    levels, nothing = times(matrix), jnp.zeros(matrix.latent_frames, bool)
    zero = jnp.zeros((), jnp.int32)

    def total(row: Array, t: Array, t_next: Array) -> Array:
        call = Call(t[None], t_next[None], Row(row, zero, nothing, zero, t != t_next))
        over = jnp.atleast_2d(rule.weigh(call).sum(axis=0)) - 1.0
        worst = jnp.where(over.max(0) > -over.min(0), over.max(0), over.min(0))
        return jnp.broadcast_to(1.0 + worst, t.shape)

    rows = jnp.arange(matrix.num_rows, dtype=jnp.int32)
    sums = np.asarray(jax.vmap(total)(rows, levels[:-1], levels[1:]))
    wrong = (np.abs(sums - 1.0) > 1e-4) & np.asarray(levels[:-1] != levels[1:])
    if wrong.any():
        row, frame = (int(place) for place in np.argwhere(wrong)[0])
        raise ConfigError(
            f"row {row}, frame {frame}: guidance weights of {type(rule).__name__} sum to "
            f"{sums[row, frame]:g}",
            "with another sum than 1, noise and data of a step no longer fit together",
            "give the branch without condition one minus the other weights",
        )


@no_type_check
@_rule
@dataclass(frozen=True)
class Ramped(ClassifierFree):
    """The scale goes evenly from that of the first latent frame to another one.

    A picture that is given needs little guidance to be kept, and far frames more.

    Attributes:
        scale: Scale of latent frame 0.
        last: Scale from frame `over` on.
        over: Latent frames from one to the other, at least 1 (static).
        execution: Whether the branches are one call (static).

    Raises:
        ConfigError: If `over` is less than 1.

    Reference: Stable Video Diffusion, arXiv:2311.15127, section 4.3.
    """

    last: Scale
    over: int = field(metadata={"static": True})

    def __post_init__(self) -> None:
        if self.over < 1:
            raise ConfigError(f"a scale that changes over {self.over} frames", "", "use 1 or more")

    def weigh(self, call: Call) -> BranchWeights:
        """Returns the weights of every frame of the window."""
        frames = call.row.start + jnp.arange(call.t.shape[1])
        share = jnp.minimum(frames / self.over, 1.0).astype(call.t.dtype)
        scale = jnp.broadcast_to(self.scale + share * (self.last - self.scale), call.t.shape)
        return jnp.stack([1.0 - scale, scale])

    def settled(self) -> Guidance:
        """Returns itself: the scale of other frames is another one."""
        return self


@no_type_check
@_rule
@dataclass(frozen=True)
class Cosine(ClassifierFree):
    """The scale rises from 1 in noise to `scale` in clean data, most of it late.

    `1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2`.

    Attributes:
        scale: Scale of clean data.
        power: Above 1 the rise is later.
        execution: Whether the branches are one call (static).

    Reference: the "dynamic cfg" of CogVideoX, arXiv:2408.06072, which counts steps instead of
    levels and ends at `1 + scale`.
    """

    power: float = 5.0

    def weigh(self, call: Call) -> BranchWeights:
        """Returns the weights of every frame."""
        place = jnp.clip(1.0 - call.t, 0.0, 1.0) ** self.power
        scale = 1.0 + (self.scale - 1.0) * 0.5 * (1.0 - jnp.cos(jnp.pi * place))
        return jnp.stack([1.0 - scale, scale])


@no_type_check
@_rule
@dataclass(frozen=True)
class TwoScales(ClassifierFree):
    """One scale for a clip with a noisy frame, another for the rest of the run.

    Attributes:
        scale: Scale of clips whose noisiest frame is at `boundary` or above.
        scale_2: Scale of others; None is `scale`.
        boundary: Noise level (static).
        execution: Whether the branches are one call (static).

    Reference: Wan 2.2 A14B, whose networks change at that level (`guidance_scale_2` of Diffusers).
    """

    scale_2: Scale | None = None
    boundary: float = field(default=0.875, metadata={"static": True})

    def weigh(self, call: Call) -> BranchWeights:
        """Returns the weights of every frame, the same for all of a clip."""
        if self.scale_2 is None:
            return super().weigh(call)
        noisy = jnp.max(call.t, axis=1, keepdims=True) >= self.boundary
        scale = jnp.broadcast_to(jnp.where(noisy, self.scale, self.scale_2), call.t.shape)
        return jnp.stack([1.0 - scale, scale])

    def settled(self) -> Guidance:
        """Two scales of 1 need no other branch."""
        return super().settled() if self.scale_2 in (None, 1) else self
