"""What a student of few steps is compared with: one small class for each kind of distillation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax.numpy as jnp

from jvdm.arrays import Latents, NoiseLevels
from jvdm.samplers.process import expand
from jvdm.samplers.segments import Segments


class Point(NamedTuple):
    """Where a student begins and where its jump ends.

    Attributes:
        x: f32[B, F, H, W, C], noisy latents.
        t: f32[B, F], their levels.
        s: f32[B, F], the ends of their segments; `t` of frames that stand: clean ones, and those
            that wait as noise.
    """

    x: Latents
    t: NoiseLevels
    s: NoiseLevels


Walk = Callable[[Point, int], Latents]
"""The teacher: latents after so many of its steps from a point, none past the segment's end."""

Jump = Callable[[Latents, NoiseLevels, NoiseLevels], Latents]
"""The average of the student: `(x, t, s)` to latents at the levels `s`."""


class Target(Protocol):
    """Says where the jump from a point should end; nothing in it is differentiated."""

    @property
    def inside(self) -> bool:
        """Whether jumps from points inside of segments are learnt too, or only from the edges."""
        ...

    def passes(self, micro: int, branches: int) -> float:
        """Returns what it costs, in forward passes of the network."""
        ...

    def __call__(self, point: Point, segments: Segments, walk: Walk, jump: Jump) -> Latents:
        """Returns latents at the levels `point.s`."""
        ...


@dataclass(frozen=True)
class Segment:
    """Where the teacher gets in all its steps to the end of the segment.

    Nothing is learnt from the student itself, and no jump but those that are sampled is trained.

    Reference: Kodaira et al., StreamDiT, arXiv:2507.03745, multistep distillation; Salimans and Ho,
    progressive distillation, arXiv:2202.00512, with more than two steps at a time.
    """

    inside: bool = False

    def passes(self, micro: int, branches: int) -> float:
        """Every step asks the teacher once for each branch."""
        return float(micro * branches)

    def __call__(self, point: Point, segments: Segments, walk: Walk, jump: Jump) -> Latents:
        """Returns the end of the teacher's way."""
        return walk(point, segments.micro)


@dataclass(frozen=True)
class Consistency:
    """Where the student's average jumps to from the teacher's next point.

    From a point whose next one is the end of the segment, the teacher alone says it.

    Reference: Wang et al., phased consistency models, arXiv:2405.18407; Heek et al., multistep
    consistency models, arXiv:2403.06807.
    """

    inside: bool = True

    def passes(self, micro: int, branches: int) -> float:
        """One step of the teacher, and one jump."""
        return float(branches + 1)

    def __call__(self, point: Point, segments: Segments, walk: Walk, jump: Jump) -> Latents:
        """Returns the end of the average's jump."""
        u, x = jnp.maximum(segments.next(point.t), point.s), walk(point, 1)
        return jnp.where(expand(u <= point.s, x), x, jump(x, u, point.s))


TARGETS: dict[str, Target] = {"segment": Segment(), "consistency": Consistency()}
"""Every target by the name that the command line knows."""
