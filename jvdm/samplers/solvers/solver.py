"""What a solver is: one step from the levels of a row to those of the next, per frame.

A solver sees only legal arithmetic: the loop (`samplers/sampler.py`) gives it harmless levels for
frozen frames, shows the network their true values, and selects their old state afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int, NoiseLevels, PyTree
from jvdm.samplers.denoiser import Call, Denoised, Denoiser, Row
from jvdm.samplers.process import Process, expand


class Context(NamedTuple):
    """One step: all that a solver may need besides the latents and its own state.

    Attributes:
        denoise: The network, with its guidance.
        t: f32[B, F], the level that each frame is at.
        t_next: f32[B, F], the level that it is to reach.
        carry: The denoiser's state before the step.
        process: The corruption process.
        moving: bool[B, F], frames that are not frozen in this step.
        updates: i32[B, F], steps that each frame has made before.
        noise: Draws fresh float32 noise of the shape of `x`; it depends on the sample,
            the frame and its number of updates alone. The argument numbers the draws
            of one step.
        remaining: i32[B, F], steps that each frame still makes, this one included.
        row: Where in the run the step is.
    """

    denoise: Denoiser
    t: Float[Array, "B F"]
    t_next: Float[Array, "B F"]
    carry: PyTree
    process: Process
    moving: Bool[Array, "B F"]
    updates: Int[Array, "B F"]
    noise: Callable[[int], Array]
    remaining: Int[Array, "B F"]
    row: Row

    def ask(self, x: Array) -> tuple[Denoised, "Context"]:
        """Evaluates the network on `x` at `t`; the context after it has the new carry."""
        denoised, carry = self.denoise(x, Call(self.t, self.t_next, self.row), self.carry)
        return denoised, self._replace(carry=carry)


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

    evaluations: int
    """Network evaluations per step."""

    def init(self, x: Array) -> PyTree:
        """Returns the state before the first step; None remembers nothing."""
        return None

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        """Moves every frame from its level `context.t` to `context.t_next`."""
        raise NotImplementedError


Moved = tuple[Array, PyTree]
"""The latents at `context.t_next`, and the solver's new state."""

Both = tuple[Denoised, Denoised]
"""What the first and the second evaluation of a step say."""


class OneEvaluation(Solver):
    """A solver that asks the network once per step, where the frame is.

    A subclass says in `move` what it makes of the answer.
    """

    evaluations = 1

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the step as one evaluation has it."""
        raise NotImplementedError

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        """Moves every frame from its level `context.t` to `context.t_next`."""
        denoised, context = context.ask(x)
        return Stepped(*self.move(denoised, x, state, context), context.carry)


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


class TwoEvaluations(Solver):
    """A solver that tries a step, asks the network again and corrects; it has no history.

    The second evaluation is left out where no frame uses it.
    """

    evaluations = 2

    def begin(self, x: Array, context: Context) -> tuple[Array, NoiseLevels]:
        """Returns where the step begins: here, unless a subclass adds noise."""
        return x, context.t

    def attempt(self, denoised: Denoised, x: Array, context: Context) -> Trial:
        """Returns the step as the first evaluation has it."""
        raise NotImplementedError

    def correct(self, trial: Trial, both: Both, x: Array, context: Context) -> Array:
        """Returns the latents at `t_next` by both evaluations."""
        raise NotImplementedError

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        """Moves every frame from its level `context.t` to `context.t_next`."""
        x, t = self.begin(x, context)
        denoised, context = context._replace(t=t).ask(x)
        trial = self.attempt(denoised, x, context)

        def correct(carry: PyTree) -> tuple[Array, PyTree]:
            second, after = context._replace(t=trial.t, carry=carry).ask(trial.x)
            corrected = self.correct(trial, (denoised, second), x, context)
            return jnp.where(expand(trial.again, x), corrected, trial.x_next), after.carry

        def keep(carry: PyTree) -> tuple[Array, PyTree]:
            return trial.x_next, carry

        x_next, carry = jax.lax.cond(jnp.any(trial.again), correct, keep, context.carry)
        return Stepped(x_next, state, carry)
