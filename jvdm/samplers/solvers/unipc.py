"""UniPC: a multistep predictor whose next evaluation also corrects its last step.

Reference: Zhao et al., arXiv:2302.04867. The systems of its equation 9 are those of the
interpolating polynomial, which `exponential.node_weights` solves in closed form.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import divide, expand
from jvdm.samplers.solvers.exponential import Past, Span, add_past, first_order, no_past, span
from jvdm.samplers.solvers.solver import Context, Moved, OneEvaluation


class Predicted(NamedTuple):
    """What a correction needs of the last step.

    Attributes:
        change: What the estimates before the last one added to its step.
        past: The last estimate and the ones before, newest first.
    """

    change: Array
    past: tuple[Past, ...]


@dataclass(frozen=True)
class UniPC(OneEvaluation):
    """Predictor of order `order`, corrector of one order more, one evaluation per step.

    Attributes:
        order: 1 to 3; a frame's first steps use what it has.
        corrector: Correct each step with the evaluation at its end.
        rule: Rule of a single node, called `solver_type` by Diffusers.
        lower_order_final: The last steps of a frame use no more estimates than steps remain.
    """

    order: int = 2
    corrector: bool = True
    rule: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise ConfigError(
                f"UniPC of order {self.order}", "its systems are solved up to 3", "use 1, 2 or 3"
            )

    def init(self, x: Array) -> PyTree:
        """Remembers the last step and as many estimates as the order."""
        return Predicted(jnp.zeros_like(x), (no_past(x),) * self.order)

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the prediction at `t_next`, made from the corrected latents at `t`."""
        over, now = span(context), denoised.x0
        base = first_order(denoised, over)
        if self.corrector:
            shrinkage = divide(over.sigma_next, context.process.sigma(context.t))
            correction = self._correction(Past(over.lam, now), state, context)
            base = base + expand(shrinkage, x) * correction
        earlier = state.past[: self.order - 1]
        change = self._change(over, now, earlier, context.remaining)
        return base + change, Predicted(change, (Past(over.lam, now), *state.past[:-1]))

    def _correction(self, new: Past, state: Predicted, context: Context) -> Array:
        """Returns what the last step lacks, now that the estimate at its end is known.

        The difference is added, so a step that a rule has edited since stays edited.
        """
        last, *earlier = state.past
        alpha = context.process.alpha(context.t)
        over = Span(alpha, alpha, last.lam, new.lam - last.lam)
        nodes = (new, *earlier[: self.order - 1])
        change = self._change(over, last.x0, nodes, context.remaining + 2)
        return jnp.where(expand(context.updates > 0, change), change - state.change, 0.0)

    def _change(self, over: Span, x0: Array, nodes: tuple[Past, ...], remaining: Array) -> Array:
        """Returns what the estimates at `nodes` add to a step of first order."""
        left = remaining if self.lower_order_final else None
        return add_past(jnp.zeros_like(x0), over, x0, nodes, left, self.rule)
