"""Segments of a grid of levels: where a student of few steps jumps, and how its teacher walks.

The edges of the segments are the levels of the student. Everything is said of single frames, so
that the frames of a clip may lie in segments of their own.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Key, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers.denoiser import Call, Denoiser
from jvdm.samplers.levels import explicit_levels, linspace_levels
from jvdm.samplers.matrices import synchronous
from jvdm.samplers.process import Process, expand
from jvdm.samplers.sampler import sample
from jvdm.samplers.solvers.solver import Context, Solver, Stepped

_SAME = 1e-6  # two levels that differ by less are one


@dataclass(frozen=True)
class Segments:
    """A grid of levels in segments of equally many steps.

    Attributes:
        points: All levels, descending to 0.
        micro: Steps per segment.

    Raises:
        ConfigError: If the levels do not descend to 0, or leave a segment unfinished.
    """

    points: tuple[float, ...]
    micro: int = 1

    def __post_init__(self) -> None:
        explicit_levels(self.points)
        steps = len(self.points) - 1
        if self.micro < 1 or steps < 1 or steps % self.micro or self.points[-1] != 0:
            what = f"{steps} steps in segments of {self.micro}"
            raise ConfigError(what, "a grid ends at 0 and has whole segments", "use 1 or more each")

    @property
    def edges(self) -> tuple[float, ...]:
        """The levels where segments begin, and 0."""
        return self.points[:: self.micro]

    def end(self, t: NoiseLevels) -> NoiseLevels:
        """Returns the end of the segment of each frame."""
        return below(t, self.edges)

    def width(self, t: NoiseLevels) -> NoiseLevels:
        """Returns how long the whole segment of each frame is; that of a clean one is the last."""
        grid = jnp.asarray(self.edges[:-1], jnp.float32)[None, None]
        above = jnp.where(grid > t[..., None] - _SAME, grid, self.edges[0])
        return jnp.min(above, -1) - self.end(t)

    def next(self, t: NoiseLevels) -> NoiseLevels:
        """Returns the next point of each frame."""
        return below(t, self.points)

    def some(self, t: NoiseLevels, uniform: NoiseLevels) -> NoiseLevels:
        """Returns a point below each frame, down to the end of its segment, of equal chances.

        Args:
            t: Levels of the frames.
            uniform: f32[B, F], draws from [0, 1); equal ones choose alike.
        """
        grid = jnp.asarray(self.points, jnp.float32)[None, None]
        first = jnp.sum(grid > t[..., None] - _SAME, -1)
        last = jnp.sum(grid > self.end(t)[..., None] + _SAME, -1)
        chosen = first + (uniform * (last + 1 - first)).astype(jnp.int32)
        return grid[0, 0, jnp.minimum(chosen, last)]

    def way(self, t: NoiseLevels, rows: int, stop: NoiseLevels) -> Float[Array, "rows B F"]:
        """Returns the levels of `rows` steps along the points, none past `stop`.

        Row 0 is `t` itself; `rows + 1` rows in all. A frame that stops where it is stands.
        """
        rest = [t]
        for _ in range(rows):
            rest.append(jnp.maximum(self.next(rest[-1]), stop))
        return jnp.stack(rest)


def below(t: NoiseLevels, levels: tuple[float, ...]) -> NoiseLevels:
    """Returns the largest of `levels` that is below each frame's level; 0 of a clean frame."""
    grid = jnp.asarray(levels, jnp.float32)[None, None]
    return jnp.max(jnp.where(grid < t[..., None] - _SAME, grid, 0.0), -1)


def divided(grid: Float[np.ndarray, " levels"], edges: tuple[float, ...], micro: int) -> Segments:
    """Returns segments between `edges` with `micro` steps each, spaced as the levels of `grid` are.

    Args:
        grid: Levels of another run, descending to 0; between two of them the place is even.
        edges: Levels where segments begin, descending; 0 may be left out.
        micro: Steps per segment.

    Raises:
        ConfigError: If edges do not descend, or begin above the grid, or `micro` is below 1.
    """
    with jax.ensure_compile_time_eval():  # they are numbers, also where a step is traced
        ends = np.asarray(explicit_levels(edges), np.float64)
    if ends[0] > grid[0] + _SAME:
        what = f"edges begin at {ends[0]:g}"
        raise ConfigError(what, f"the teacher begins at {grid[0]:g}", "use lower edges")
    if micro < 1:
        raise ConfigError(f"micro is {micro}", "a segment has a step at least", "use 1 or more")
    place = np.interp(ends, grid[::-1], np.arange(len(grid))[::-1])
    between = [np.linspace(*pair, micro + 1)[:-1] for pair in zip(place, place[1:], strict=False)]
    points = np.interp(np.concatenate([*between, place[-1:]]), np.arange(len(grid)), grid)
    points[::micro] = ends  # without rounding
    return Segments(tuple(points.tolist()), micro)


@dataclass(frozen=True)
class _Along(Solver):
    """Moves the frames of every sample along levels of their own, `rows`, and not the matrix's."""

    solver: Solver
    rows: Float[Array, "rows B F"]

    @property
    def evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.evaluations

    def init(self, x: Array) -> PyTree:
        return self.solver.init(x)

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        t, t_next = self.rows[context.row.index], self.rows[context.row.index + 1]
        moving, t_max = t != t_next, context.process.t_max

        def seen(shown: Array, call: Call, carry: PyTree) -> tuple:
            shown = jnp.where(expand(moving, x), shown, x)
            there, after = (jnp.where(moving, of, t) for of in (call.t, call.t_next))
            return context.denoise(shown, Call(there, after, call.row), carry)

        # Frames that stand are computed at levels that are legal for every process.
        legal = jnp.where(moving, t, 0.5 * t_max), jnp.where(moving, t_next, 0.25 * t_max)
        told = context._replace(denoise=seen, t=legal[0], t_next=legal[1], moving=moving)
        stepped = self.solver.step(x, state, told)

        def kept(new: Array, old: Array) -> Array:
            return jnp.where(expand(moving, old), new, old)

        history = jax.tree.map(kept, stepped.state, state)
        return stepped._replace(x=kept(stepped.x, x), state=history)


def follow(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    rows: Float[Array, "rows B F"],
    x: Latents,
    key: Key,
    carry: PyTree = None,
) -> Latents:
    """Returns latents after a run in which each frame of each sample has levels of its own.

    Args:
        denoise: The network, with its guidance.
        solver: How a step is made.
        process: The corruption process.
        rows: The level of each frame before each row, and behind the last.
        x: Latents at the levels of the first row; frames whose level stays keep their bits.
        key: Stream of the noise that stochastic solvers draw.
        carry: The denoiser's first state.
    """
    clock = synchronous(linspace_levels(len(rows) - 1), x.shape[1])
    run = (denoise, _Along(solver, rows), process, clock, x, named(key, "follow"))
    return sample(*run, carry=carry).x
