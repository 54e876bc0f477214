"""What a solver is: one step from the levels of a row to those of the next, per frame.

A solver sees only legal arithmetic: the loop (`samplers/sampler.py`) gives it harmless levels for
frozen frames, shows the network their true values, and selects their old state afterwards.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Denoised, Denoiser, Row
from jvdm.samplers.modalities import any_of, each
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

    def aim(self, context: Context) -> Context:
        """Returns the step that the network is told of: this one, unless a subclass differs."""
        return context

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the step as one evaluation has it."""
        raise NotImplementedError

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        """Moves every frame from its level `context.t` to `context.t_next`."""
        return _step_once(self, x, state, context)


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
        return _step_twice(self, x, state, context)


class Around(Solver):
    """A solver that makes its steps with another, and changes what that one hears and makes."""

    solver: Solver

    @property
    def evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Network evaluations per step: those of the other."""
        return self.solver.evaluations

    def edit(self, denoised: Denoised, x: Array, call: Call, process: Process) -> Denoised:
        """Returns what the network says of `x`, as the other solver is to hear it."""
        return denoised

    def after(self, x_next: Array, context: Context) -> Array:
        """Returns the latents at `context.t_next`, changed after the step."""
        return x_next

    def init(self, x: Array) -> PyTree:
        """Returns the state of the other."""
        return self.solver.init(x)

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        """Moves every frame from its level `context.t` to `context.t_next`."""
        return _step_around(self, x, state, context)


def step_all(solver: Any, x: Any, state: Any, context: Any) -> Stepped:
    """Does a step of all modalities, whose solvers ask the network together.

    Args:
        solver: A solver, or one for each modality by name; so are the latents, the solvers' states
            and the contexts, whose network and carry are those of all modalities.

    Returns:
        Latents and states by name, and the carry.

    Raises:
        ConfigError: If the solvers do not ask equally often.
    """
    if not isinstance(solver, Mapping):
        return solver.step(x, state, context)
    solvers = tuple(solver.values())
    if any(isinstance(one, Around) for one in solvers):
        return _step_around(solver, x, state, context)
    if all(isinstance(one, OneEvaluation) for one in solvers):
        return _step_once(solver, x, state, context)
    if all(isinstance(one, TwoEvaluations) for one in solvers):
        return _step_twice(solver, x, state, context)
    raise ConfigError(
        f"solvers {', '.join(f'{one} of {name}' for name, one in solver.items())}",
        "solvers of modalities ask the network at the same time, once or twice in a step",
        "use solvers of one evaluation (OneEvaluation), or of two (TwoEvaluations)",
    )


def _step_once(solver: Any, x: Any, state: Any, context: Any) -> Stepped:
    """Asks once, and moves every modality."""
    aimed = each(lambda solver, context: solver.aim(context), solver, context)
    said, carry = _ask(x, aimed, _one(context).carry)
    moved = each(lambda solver, *given: solver.move(*given), solver, said, x, state, context)
    return Stepped(each(itemgetter(0), moved), each(itemgetter(1), moved), carry)


def _step_twice(solver: Any, x: Any, state: Any, context: Any) -> Stepped:
    """Tries a step of every modality, asks again if one of them needs it, and corrects."""
    begun = each(lambda solver, *given: solver.begin(*given), solver, x, context)
    x = each(itemgetter(0), begun)
    context = each(lambda context, begun: context._replace(t=begun[1]), context, begun)
    said, carry = _ask(x, context, _one(context).carry)
    trial = each(lambda solver, *given: solver.attempt(*given), solver, said, x, context)

    def corrected(solver: Any, trial: Trial, said: Any, second: Any, x: Any, context: Any) -> Array:
        other = solver.correct(trial, (said, second), x, context)
        return jnp.where(expand(trial.again, x), other, trial.x_next)

    def correct(carry: PyTree) -> tuple[Any, PyTree]:
        ahead = each(lambda context, trial: context._replace(t=trial.t), context, trial)
        second, carry = _ask(each(attrgetter("x"), trial), ahead, carry)
        return each(corrected, solver, trial, said, second, x, context), carry

    def keep(carry: PyTree) -> tuple[Any, PyTree]:
        return each(attrgetter("x_next"), trial), carry

    again = any_of(each(attrgetter("again"), trial))
    x_next, carry = jax.lax.cond(again, correct, keep, carry)
    return Stepped(x_next, state, carry)


def _step_around(solver: Any, x: Any, state: Any, context: Any) -> Stepped:
    """Steps with the solvers inside; a modality without one around keeps what is said and made."""

    def edit(solver: Solver, context: Context, said: Denoised, x: Array, call: Call) -> Denoised:
        around = isinstance(solver, Around)
        return solver.edit(said, x, call, context.process) if around else said

    def edited(x: Any, call: Any, carry: PyTree) -> tuple[Any, PyTree]:
        said, carry = _one(context).denoise(x, call, carry)
        return each(edit, solver, context, said, x, call), carry

    def after(solver: Solver, x_next: Array, context: Context) -> Array:
        return solver.after(x_next, context) if isinstance(solver, Around) else x_next

    inner = each(lambda one: one.solver if isinstance(one, Around) else one, solver)
    shown = each(lambda context: context._replace(denoise=edited), context)
    stepped = step_all(inner, x, state, shown)
    return stepped._replace(x=each(after, solver, stepped.x, context))


def _ask(x: Any, context: Any, carry: PyTree) -> tuple[Any, PyTree]:
    """Evaluates the network on what all modalities have."""
    call = each(lambda context: Call(context.t, context.t_next, context.row), context)
    return _one(context).denoise(x, call, carry)


def _one(context: Any) -> Context:
    """Returns the context of any modality: network and carry are those of all."""
    return next(iter(context.values())) if isinstance(context, Mapping) else context
