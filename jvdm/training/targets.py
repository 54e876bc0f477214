"""What a student of few steps is compared with: one small class for each kind of distillation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Key, Latents, NoiseLevels
from jvdm.keys import named
from jvdm.samplers.process import expand
from jvdm.samplers.segments import Segments
from jvdm.samplers.timesteps import per_clip


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


class Ends(NamedTuple):
    """Where jumps from points lead.

    Attributes:
        s: f32[B, F], the levels that they end at.
        told: f32[B, F], the levels that the student is told that they lead to.
        width: f32[B, F], the length that an error is counted in.
    """

    s: NoiseLevels
    told: NoiseLevels
    width: NoiseLevels


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

    def ends(self, key: Key, t: NoiseLevels, segments: Segments) -> Ends:
        """Returns where jumps from levels `t` lead: to the ends of their segments."""
        stop = segments.end(t)
        return Ends(stop, stop, segments.width(t))

    def __call__(self, point: Point, segments: Segments, walk: Walk, jump: Jump) -> Latents:
        """Returns latents at the levels `point.s`."""
        ...


@dataclass(frozen=True)
class Segment(Target):
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
class Consistency(Target):
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


@dataclass(frozen=True)
class FlowMaps(Consistency):
    """Jumps between any two points: one student for any number of steps.

    Its network says the mean velocity `u(x, t, s)` of the teacher's way from `t` to `s`, and is
    told `s`. The target `v - (t - s) du/dt` of mean velocities is taken over a whole step of the
    teacher: with `x'` its next point, at `t'`, `(t - s) u = (t - t') v + (t' - s) u(x', t', s)`,
    which the exact flow map fulfils at every step. Errors count by the length of their jump.

    Reference: AnyFlow (NVlabs/AnyFlow), forward training; Geng et al., MeanFlow, arXiv:2505.13447.
    They take `du/dt` from nearby levels instead.

    Attributes:
        still: Share of clips that learn the velocity: what is said where a jump has no length.
        whole: Share of clips whose jumps lead to the end of the segment; others to any point.
    """

    still: float = 0.5
    whole: float = 0.25

    def ends(self, key: Key, t: NoiseLevels, segments: Segments) -> Ends:
        """Returns ends that are drawn for each clip."""

        def draw(key: Key) -> Array:
            return jax.random.uniform(key, (2, 1))

        kind, place = jnp.moveaxis(per_clip(draw, named(key, "ends"), len(t)), 1, 0)
        place = jnp.broadcast_to(place, t.shape)
        to_end, still = kind < self.still + self.whole, kind < self.still
        s = jnp.where(to_end, segments.end(t), segments.some(t, place))
        s = jnp.where(still, segments.next(t), s)
        return Ends(s, jnp.where(still, t, s), jnp.where(t > 0, t - s, 1.0))


TARGETS: dict[str, Target] = {
    "segment": Segment(),
    "consistency": Consistency(),
    "flow_map": FlowMaps(),
}
"""Every target by the name that the command line knows."""
