"""What a solver is: one step from the levels of a row to those of the next, per frame.

A solver sees only legal arithmetic: the loop (`samplers/sampler.py`) gives it harmless levels for
frozen frames, shows the network their true values, and selects their old state afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int, NoiseLevels, PyTree
from jvdm.samplers.denoiser import Denoised, Denoiser
from jvdm.samplers.process import Process, expand, mix


class Context(NamedTuple):
    """What a step may need besides the state.

    Attributes:
        process: The corruption process.
        moving: bool[B, F], frames that are not frozen in this step.
        updates: i32[B, F], steps that each frame has made before.
        noise: Draws fresh float32 noise of the shape of `x`; it depends on the sample,
            the frame and its number of updates alone. The argument numbers the draws
            of one step.
        remaining: i32[B, F], steps that each frame still makes, this one included.
    """

    process: Process
    moving: Bool[Array, "B F"]
    updates: Int[Array, "B F"]
    noise: Callable[[int], Array]
    remaining: Int[Array, "B F"]


class Stepped(NamedTuple):
    """The result of a step: the new latents, solver state and denoiser carry."""

    x: Array
    state: PyTree
    carry: PyTree


@runtime_checkable
class Solver(Protocol):
    """A frozen dataclass with a pure `init` and `step`.

    Every leaf of the solver's state is an array `[B, F, ...]`: the loop slices it to the
    window and keeps the old value of frozen frames.
    """

    @property
    def evaluations(self) -> int:
        """Network evaluations per step."""
        ...

    def init(self, x: Array) -> PyTree:
        """Returns the state before the first step."""
        ...

    def step(
        self,
        denoise: Denoiser,
        x: Array,
        t: Array,
        t_next: Array,
        state: PyTree,
        carry: PyTree,
        context: Context,
    ) -> Stepped:
        """Moves every frame from its level `t` to `t_next`."""
        ...


def velocity(process: Process, denoised: Denoised, t: NoiseLevels) -> Float[Array, "B F ..."]:
    """Returns `d x / d t`, the direction in which `x_t` moves."""
    return mix(process.d_alpha(t), process.d_sigma(t), denoised.x0, denoised.eps)


class OneEvaluation:
    """A solver that asks the network once per step, where the frame is.

    A subclass says in `move` what it makes of the answer.
    """

    evaluations = 1

    def init(self, x: Array) -> PyTree:
        """Remembers nothing, unless a subclass does."""
        return None

    def move(
        self,
        denoised: Denoised,
        x: Array,
        t: NoiseLevels,
        t_next: NoiseLevels,
        state: PyTree,
        context: Context,
    ) -> tuple[Array, PyTree]:
        """Returns the latents at `t_next` and the new state."""
        raise NotImplementedError

    def step(
        self,
        denoise: Denoiser,
        x: Array,
        t: Array,
        t_next: Array,
        state: PyTree,
        carry: PyTree,
        context: Context,
    ) -> Stepped:
        """Moves every frame from its level `t` to `t_next`."""
        denoised, carry = denoise(x, t, carry)
        return Stepped(*self.move(denoised, x, t, t_next, state, context), carry)


class Trial(NamedTuple):
    """A step after its first evaluation.

    Attributes:
        x_next: The latents at `t_next`, as far as one evaluation tells.
        x: The latents that the second evaluation is shown.
        t: Their level.
        again: bool[B, F], frames that use the second evaluation.
    """

    x_next: Array
    x: Array
    t: NoiseLevels
    again: Bool[Array, "B F"]


class TwoEvaluations:
    """A solver that tries a step, asks the network again and corrects; it has no history.

    The second evaluation is left out where no frame uses it.
    """

    evaluations: int = 2

    def init(self, x: Array) -> PyTree:
        """Remembers nothing."""
        return None

    def begin(self, x: Array, t: NoiseLevels, context: Context) -> tuple[Array, NoiseLevels]:
        """Returns where the step begins: here, unless a subclass adds noise."""
        return x, t

    def attempt(
        self, denoised: Denoised, x: Array, t: NoiseLevels, t_next: NoiseLevels, context: Context
    ) -> Trial:
        """Returns the step as the first evaluation has it."""
        raise NotImplementedError

    def correct(
        self,
        trial: Trial,
        both: tuple[Denoised, Denoised],
        x: Array,
        levels: tuple,
        context: Context,
    ) -> Array:
        """Returns the latents at `t_next` by both evaluations; `levels` are `(t, t_next)`."""
        raise NotImplementedError

    def step(
        self,
        denoise: Denoiser,
        x: Array,
        t: Array,
        t_next: Array,
        state: PyTree,
        carry: PyTree,
        context: Context,
    ) -> Stepped:
        """Moves every frame from its level `t` to `t_next`."""
        x, t = self.begin(x, t, context)
        denoised, carry = denoise(x, t, carry)
        trial = self.attempt(denoised, x, t, t_next, context)

        def correct(carry: PyTree) -> tuple[Array, PyTree]:
            second, carry = denoise(trial.x, trial.t, carry)
            corrected = self.correct(trial, (denoised, second), x, (t, t_next), context)
            return jnp.where(expand(trial.again, x), corrected, trial.x_next), carry

        def keep(carry: PyTree) -> tuple[Array, PyTree]:
            return trial.x_next, carry

        x_next, carry = jax.lax.cond(jnp.any(trial.again), correct, keep, carry)
        return Stepped(x_next, state, carry)
