"""Adaptive projected guidance: what exaggerates contrast is taken out of the difference."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, PyTree, no_type_check
from jvdm.samplers.denoiser import Call, Denoised
from jvdm.samplers.guidance import ClassifierFree, Scale
from jvdm.samplers.process import Process, Values, divide, to_x0_eps


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Projected(ClassifierFree):
    """Guidance by the part of the difference that is orthogonal to the conditional data.

    `d = x0_1 - x0_0 + momentum * d_before`, shortened to `norm`, splits into a part along `x0_1`
    and one across; `x0 = x0_1 + (scale - 1) (across + along_share * along)`. All of that is done
    for each frame by itself, so frames at other levels have no say; the noise is what `x_t` leaves
    for it. With the defaults and `along_share = 1` it is classifier-free guidance.

    Attributes:
        scale: Guidance scale.
        along_share: Share of the part along `x0_1` that is kept; 0 keeps saturation low.
        norm: Largest norm of a frame's difference, None for any.
        momentum: Share of the last step's difference, negative to go against it (static); a frame
            remembers its own, in the steps in which it moves.
        execution: Whether the branches are one call (static).

    Reference: Sadat et al., arXiv:2410.02416, algorithm 1, there for whole images.
    """

    along_share: Scale = 0.0
    norm: Scale | None = None
    momentum: float = field(default=0.0, metadata={"static": True})

    @property
    def remembers(self) -> bool:
        """Whether there is a momentum."""
        return self.momentum != 0

    def combine(self, branches: list[Denoised], x: Array, call: Call, process: Process) -> Denoised:
        """Returns what the branches say together, without a past."""
        return self.combine_after(None, branches, x, call, process)[0]

    def combine_after(
        self, memory: PyTree, branches: list[Denoised], x: Array, call: Call, process: Process
    ) -> tuple[Denoised, PyTree]:
        """Returns what the branches say after earlier steps, and the difference."""
        without, given = (branch.x0 for branch in branches)
        difference = given - without
        if memory is not None:
            difference = difference + self.momentum * memory
        shortened = difference
        if self.norm is not None:
            length = jnp.sqrt(_per_frame(difference, difference))
            shortened = difference * jnp.minimum(1.0, divide(jnp.asarray(self.norm), length))
        share = divide(_per_frame(shortened, given), _per_frame(given, given))
        along = share * given
        change = shortened - along + self.along_share * along
        x0 = given + (self.scale - 1.0) * change
        return Denoised(*to_x0_eps(process, "x0", x0, x, call.t)), difference


def _per_frame(one: Values, other: Values) -> Values:
    """Returns the inner product of each frame, with axes of size 1."""
    return jnp.sum(one * other, tuple(range(2, one.ndim)), keepdims=True)
