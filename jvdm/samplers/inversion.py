"""Inversion: the noise that a clip would have come from, by the same loop on reversed rows."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Key, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Denoiser
from jvdm.samplers.matrices import TimestepMatrix
from jvdm.samplers.process import Process
from jvdm.samplers.sampler import State, sample
from jvdm.samplers.solvers import Context, Solver, Stepped


def reversed_rows(matrix: TimestepMatrix) -> TimestepMatrix:
    """Returns the matrix whose rows go from clean data to noise; caches are not written."""
    return dataclasses.replace(
        matrix,
        index=matrix.index[::-1],
        start=matrix.start[::-1],
        write=jnp.zeros_like(matrix.write),
    )


@dataclass(frozen=True)
class Inverted(Solver):
    """Finds where a step of `solver` would have come from.

    The equation `step(x_next) = x` is solved by `x_next <- x + x_next - step(x_next)`, from
    `x_next = x` on. The first evaluation alone is the usual inversion of DDIM; more come nearer
    to the exact one where a step is short enough for them to converge.

    Attributes:
        solver: A deterministic solver without a history, such as `DDIM` or `Euler`.
        refinements: Further evaluations per step.

    Raises:
        ConfigError: If the number is negative; when it runs, if the solver has a history or noise.

    Reference: Song et al., arXiv:2010.02502, section 4.3; iterated: Pan et al., AIDI,
    arXiv:2309.04907.
    """

    solver: Solver
    refinements: int = 0

    def __post_init__(self) -> None:
        if self.refinements < 0:
            raise ConfigError(f"{self.refinements} refinements", "", "use 0 or more")

    @property
    def evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Network evaluations per step."""
        return self.solver.evaluations * (1 + self.refinements)

    def init(self, x: Array) -> PyTree:
        """Remembers nothing."""
        if self.solver.init(x) is not None:
            self._refuse("it remembers earlier steps")
        return None

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        """Moves every frame from `context.t` up to `context.t_next`."""
        back = context._replace(t=context.t_next, t_next=context.t, noise=self._no_noise)

        def nearer(guessed: Stepped) -> Stepped:
            stepped = self.solver.step(guessed.x, None, back._replace(carry=guessed.carry))
            return Stepped(x + guessed.x - stepped.x, None, stepped.carry)

        return _repeat(nearer, Stepped(x, None, context.carry), 1 + self.refinements)

    def _no_noise(self, number: int) -> Array:
        self._refuse("it draws noise")

    def _refuse(self, why: str) -> NoReturn:
        fix = "use DDIM() or Euler() to invert"
        raise ConfigError(f"{type(self.solver).__name__} cannot be inverted", why, fix)


def _repeat(function: Callable[[Stepped], Stepped], value: Stepped, times: int) -> Stepped:
    """Applies a function to what it returned, as one program whatever the number."""
    return jax.lax.fori_loop(0, times, lambda _, last: function(last), value)


def invert(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    matrix: TimestepMatrix,
    clean: Float[Array, "B F ..."],
    key: Key | None = None,
    *,
    refinements: int = 0,
    carry: PyTree = None,
) -> State:
    """Does a run backwards, from clean latents to the noise that they would come from.

    `run_rows` with `Inverted` and `reversed_rows` shows the latents of every row, which
    `Blend(..., by_row=True)` takes in reversed order.

    Args:
        denoise: The network, with its guidance; a scale of 1 is inverted best.
        solver: What the forward run is made with.
        process: The corruption process.
        matrix: The rows of the forward run; frozen frames stay.
        clean: Clean latents.
        key: Of no effect, as nothing is drawn.
        refinements: Further evaluations per step.
        carry: The denoiser's first state.

    Returns:
        The state whose `x` are at the levels of the first row of `matrix`.

    Raises:
        ConfigError: If the solver has a history or draws noise.
    """
    solver, key = Inverted(solver, refinements), jax.random.key(0) if key is None else key
    return sample(denoise, solver, process, reversed_rows(matrix), clean, key, carry=carry)
