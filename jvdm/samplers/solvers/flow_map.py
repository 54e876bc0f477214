"""Flow maps: networks that were trained on pairs of levels, and jump from one to the other."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from jvdm.arrays import Array, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import Process, expand, mix
from jvdm.samplers.solvers.solver import Context, Moved, OneEvaluation


@dataclass(frozen=True)
class FlowMap(OneEvaluation):
    """One evaluation per jump, however far it is; the network is told where the jump ends.

    What the network says at `(t, t_next)` holds for the whole jump: with a mean velocity `u` on
    the straight flow `x_next = x - (t - t_next) u`, with `v` on the trigonometric one
    `x_next = cos(a) x - sin(a) v`, `a` the angle between both levels; in general
    `alpha_next x0 + sigma_next eps`. A network that does not use `t_next` makes it DDIM.

    Attributes:
        gamma: Share of the noise at the end of a jump that is drawn afresh: the jump goes to
            `sqrt(1 - gamma^2)` of its `sigma / alpha`, and noise leads back. 0 draws none, 1 jumps
            to clean data as consistency sampling does.

    Raises:
        ConfigError: If `gamma` lies outside 0 to 1.

    Reference: Geng et al., MeanFlow, arXiv:2505.13447, algorithm 2; Lu and Song, arXiv:2410.11081;
    `gamma`: Kim et al., consistency trajectory models, arXiv:2310.02279, algorithm 3.
    """

    gamma: float = 0.0

    def __post_init__(self):
        if not 0 <= self.gamma <= 1:
            raise ConfigError(
                f"a flow map with gamma = {self.gamma}",
                "gamma is the share of fresh noise",
                "use 0 (deterministic) to 1 (consistency sampling)",
            )

    def aim(self, context: Context) -> Context:
        """Returns the jump: it may land below `context.t_next`."""
        return context._replace(t_next=self._landing(context.process, context.t_next))

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the latents at `context.t_next`."""
        process, t_next = context.process, context.t_next
        landing = self._landing(process, t_next)
        alpha = process.alpha(landing)
        x_next = mix(alpha, process.sigma(landing), denoised.x0, denoised.eps)
        if self.gamma:
            back = expand(process.alpha(t_next) / alpha, x)
            fresh = expand(self.gamma * process.sigma(t_next), x) * context.noise(0)
            x_next = back * x_next + fresh
        return x_next, state

    def _landing(self, process: Process, t_next: NoiseLevels) -> NoiseLevels:
        """Returns the level that the network jumps to."""
        if self.gamma in (0, 1):
            return t_next * (1.0 - self.gamma)
        nearer = -0.5 * math.log1p(-(self.gamma**2))
        clean = t_next == 0
        lam = process.lam(jnp.where(clean, 0.5 * process.t_max, t_next)) + nearer
        return jnp.where(clean, t_next, process.inv_lam(lam))
