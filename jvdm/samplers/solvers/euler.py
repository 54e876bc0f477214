"""Solvers that follow the velocity `d x / d t`: the natural ones for rectified flow."""

from dataclasses import dataclass

import jax.numpy as jnp

from jvdm.arrays import Array, NoiseLevels, PyTree
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import Process, expand, from_x0_eps
from jvdm.samplers.solvers.solver import Both, Context, Moved, OneEvaluation, Trial, TwoEvaluations


def _velocity(process: Process, denoised: Denoised, t: NoiseLevels) -> Array:
    """Returns `d x / d t`, the direction in which `x_t` moves."""
    return from_x0_eps(process, "velocity", denoised.x0, denoised.eps, t)


def _euler(denoised: Denoised, x: Array, context: Context) -> Array:
    """One Euler step; a singular process ends with `x0`, where the velocity has no limit."""
    process, t, t_next = context.process, context.t, context.t_next
    x_next = x + expand(t_next - t, x) * _velocity(process, denoised, t)
    if not process.singular_at_zero:
        return x_next
    return jnp.where(expand(t_next, x) == 0, denoised.x0, x_next)


@dataclass(frozen=True)
class Euler(OneEvaluation):
    """First order: follows the velocity of the current level."""

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the latents at `t_next`."""
        return _euler(denoised, x, context), state


@dataclass(frozen=True)
class Heun(TwoEvaluations):
    """Second order: the mean of the velocities at both ends of the step.

    A frame's last step, to `t = 0`, is an Euler step unless `correct_last`: there a
    singular process has no velocity, and a network that was trained with clean context
    frames never learned one. The order is not affected.

    Attributes:
        correct_last: Also average in steps to `t = 0` where the process is not singular.

    Reference: Karras et al., arXiv:2206.00364, algorithm 1.
    """

    correct_last: bool = False

    def attempt(self, denoised: Denoised, x: Array, context: Context) -> Trial:
        """Returns an Euler step."""
        predicted = _euler(denoised, x, context)
        again = context.moving
        if context.process.singular_at_zero or not self.correct_last:
            # Finished frames are shown finished: they are context for the others.
            again = again & (context.t_next > 0)
        return Trial(predicted, predicted, context.t_next, again)

    def correct(self, trial: Trial, both: Both, x: Array, context: Context) -> Array:
        """Returns a step along the mean of both velocities."""
        (first, second), t, t_next = both, context.t, context.t_next
        slope = _velocity(context.process, first, t) + _velocity(context.process, second, t_next)
        return x + expand(0.5 * (t_next - t), x) * slope
