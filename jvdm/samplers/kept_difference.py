"""Guidance that asks the branch without condition in some rows only, and keeps what it differed."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, PyTree, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Denoised
from jvdm.samplers.guidance import Execution
from jvdm.samplers.guidance_scales import TwoScales
from jvdm.samplers.process import Process, Values, expand, from_x0_eps, to_x0_eps

_STATIC = {"static": True}


class Kept(NamedTuple):
    """What frames remember of the steps in which they moved.

    Attributes:
        velocity: f32[B, F, ...], velocity of the prompt less that without condition, of the last
            row in which both branches were asked.
        at: f32[B, F], level of the frame in its last step.
        age: f32[B, F], steps since that row, it counted; 0 before the first.
    """

    velocity: Array
    at: Array
    age: Array


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeptDifference(TwoScales):
    """Classifier-free guidance by a difference that is kept for some steps.

    In a row that reuses, the velocity without condition is `v_1 - D`, with `D` the difference
    `v_1 - v_0` of the last row that computed, and the branch is not evaluated. One decision is
    made for all frames and samples of a row: both branches are asked if any frame that moves has
    no difference yet, has reused it `longest` times, stands above the level `above`, or has been
    noised again since. Frames at rest never ask, and remember nothing. A second evaluation within
    a step reuses that of the first. Rows that are written to a cache ask all branches.

    Attributes:
        scale: Guidance scale.
        scale_2: That of clips all of whose frames are below `boundary`; None is the same.
        boundary: Noise level (static).
        longest: Steps in a row that may reuse (static); 0 is guidance without reuse.
        above: Moving frames above this level ask for both branches.
        low: Weight of the low frequencies of `D` in a reusing frame above `middle` (static).
        high: Weight of the others in a frame at `middle` and below (static).
        middle: Level at which one weight ends and the other begins.
        execution: One branch after the other; a batch could leave nothing out (static).

    Reference: the CFG cache of FasterCache, Lv et al., arXiv:2410.19355; low are the frequencies
    of a frame up to a fifth of its shorter side.

    Raises:
        ConfigError: If `longest` is negative, or the branches are to be one batch.
    """

    longest: int = field(default=1, metadata=_STATIC)
    above: float = 0.95
    low: float = field(default=1.0, metadata=_STATIC)
    high: float = field(default=1.0, metadata=_STATIC)
    middle: float = 0.5
    execution: Execution = field(default="sequential", kw_only=True, metadata=_STATIC)

    def __post_init__(self) -> None:
        if self.longest < 0:
            what = f"a difference of branches is reused for {self.longest} steps"
            raise ConfigError(what, "it counts", "use 0 or more")
        if self.execution != "sequential":
            raise ConfigError(
                "guidance that keeps its difference evaluates its branches as one batch",
                "a batch cannot leave out the branch that is to be reused",
                'use execution="sequential", or guidance "cfg"',
            )

    @property
    def remembers(self) -> bool:
        """It does."""
        return True

    def first_memory(self, shape: tuple[int, ...]) -> Kept:
        """Returns a memory of frames that have not started."""
        return Kept(jnp.zeros(shape), jnp.zeros(shape[:2]), jnp.zeros(shape[:2]))

    def needed_after(self, memory: Kept, call: Call) -> Bool[Array, " n"]:
        """Returns whether the branch without condition is asked; the other one always is."""
        return jnp.stack([self.computes(memory, call), jnp.bool_(True)])

    def computes(self, memory: Kept, call: Call) -> Bool[Array, ""]:
        """Returns whether a row asks both branches."""
        steps = call.t != call.t_next
        moves = steps if call.row.moving is None else jnp.broadcast_to(call.row.moving, steps.shape)
        # Asked again within its step a frame has t = t_next, and what that step remembered.
        old = (memory.age > self.longest) & (steps | (self.longest == 0))
        new = (memory.age == 0) | (call.t > memory.at) | (call.t > self.above)
        return jnp.any(moves & (old | new)) | jnp.any(call.row.write)

    def combine_after(
        self, memory: Kept, branches: list[Denoised], x: Array, call: Call, process: Process
    ) -> tuple[Denoised, PyTree]:
        """Returns what the branches say together, and the difference of the last that were asked.

        Raises:
            ConfigError: If frequencies are weighed in frames without rows and columns.
        """
        computes = self.computes(memory, call)
        without, given = (
            from_x0_eps(process, "velocity", branch.x0, branch.eps, call.t) for branch in branches
        )
        recalled = to_x0_eps(process, "velocity", given - self._weighed(memory, call), x, call.t)
        first = [jnp.where(computes, *pair) for pair in zip(branches[0], recalled, strict=True)]
        denoised = self.combine([Denoised(*first), branches[1]], x, call, process)
        now = Kept(given - without, call.t, jnp.ones_like(call.t))
        old = memory._replace(at=call.t, age=memory.age + 1)
        return denoised, jax.tree.map(lambda *pair: jnp.where(computes, *pair), now, old)

    def _weighed(self, memory: Kept, call: Call) -> Values:
        """Returns the kept difference with the weights of its frequencies."""
        difference = memory.velocity
        if self.low == self.high == 1:
            return difference
        if difference.ndim != 5:
            what = f"frequencies are weighed in latents of shape {difference.shape}"
            raise ConfigError(what, "frames have rows and columns", "leave low and high at 1")
        low = low_frequencies(difference)
        noisy = expand(call.t > self.middle, low)
        share_low, share_high = jnp.where(noisy, self.low, 1.0), jnp.where(noisy, 1.0, self.high)
        return share_low * low + share_high * (difference - low)


def low_frequencies(frames: Float[Array, "B F H W C"]) -> Float[Array, "B F H W C"]:
    """Returns the frequencies of every frame up to a fifth of its shorter side."""
    height, width = frames.shape[2:4]
    rows, columns = (jnp.fft.fftfreq(size) * size for size in (height, width))
    inside = rows[:, None] ** 2 + columns[None] ** 2 <= (min(height, width) // 5) ** 2
    spectrum = jnp.fft.fft2(frames, axes=(2, 3)) * inside[None, None, :, :, None]
    return jnp.fft.ifft2(spectrum, axes=(2, 3)).real.astype(frames.dtype)
