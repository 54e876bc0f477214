"""Solvers: one step from the levels of a row to those of the next, per frame.

A solver sees only legal arithmetic: the loop (`sampler.py`) gives it harmless levels for
frozen frames, shows the network their true values, and selects their old state afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    process: Process
    moving: Bool[Array, "B F"]
    updates: Int[Array, "B F"]
    noise: Callable[[int], Array]


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


def _euler(process: Process, denoised: Denoised, x: Array, t: Array, t_next: Array) -> Array:
    """One Euler step; a singular process ends with `x0`, where the velocity has no limit."""
    x_next = x + expand(t_next - t, x) * velocity(process, denoised, t)
    if not process.singular_at_zero:
        return x_next
    return jnp.where(expand(t_next, x) == 0, denoised.x0, x_next)


@dataclass(frozen=True)
class Euler:
    """First order: follows the velocity of the current level. One evaluation per step."""

    evaluations = 1

    def init(self, x: Array) -> PyTree:
        """Euler remembers nothing."""
        return None

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
        return Stepped(_euler(context.process, denoised, x, t, t_next), state, carry)


@dataclass(frozen=True)
class Heun:
    """Second order: the mean of the velocities at both ends of the step.

    A frame's last step, to `t = 0`, is an Euler step unless `correct_last`: there a
    singular process has no velocity, and a network that was trained with clean context
    frames never learned one. The order is not affected.

    Attributes:
        correct_last: Also average in steps to `t = 0` where the process is not singular.

    Reference: Karras et al., arXiv:2206.00364, algorithm 1.
    """

    correct_last: bool = False
    evaluations = 2

    def init(self, x: Array) -> PyTree:
        """Heun remembers nothing."""
        return None

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
        process = context.process
        denoised, carry = denoise(x, t, carry)
        predicted = _euler(process, denoised, x, t, t_next)
        corrected = context.moving
        if process.singular_at_zero or not self.correct_last:
            corrected &= t_next > 0

        def correct(carry: PyTree) -> tuple[Array, PyTree]:
            # Finished frames are shown finished: they are context for the others.
            second, carry = denoise(predicted, t_next, carry)
            slope = velocity(process, denoised, t) + velocity(process, second, t_next)
            averaged = x + expand(0.5 * (t_next - t), x) * slope
            return jnp.where(expand(corrected, x), averaged, predicted), carry

        def keep(carry: PyTree) -> tuple[Array, PyTree]:
            return predicted, carry

        x_next, carry = jax.lax.cond(jnp.any(corrected), correct, keep, carry)
        return Stepped(x_next, state, carry)
