"""What a network is told of frames that are finished, and of those that were given clean."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, PyTree, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Denoised, Denoiser
from jvdm.samplers.process import Process, expand


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stabilised:
    """Shows clean frames as `alpha(level) x` and tells the network that they are at that level.

    The network then takes them for a little noisy and leans on them less, so that its own errors
    do not add up from window to window. No noise is added, and the frames themselves stay what
    they are; in a cache, keys and values are those of the level too.

    Attributes:
        level: Noise level that is told, 0 (the truth) to below 1; .01 to .02 in the paper's code.

    Reference: Diffusion Forcing, Chen et al., arXiv:2407.01392, "stabilising autoregressive
    generation"; that nothing is noised is from its published code.

    Raises:
        ConfigError: If the level is known to lie outside.
    """

    level: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.level, float | int) and not 0 <= self.level < 1:
            raise ConfigError(
                f"finished frames are told the level {self.level}",
                "0 is clean, and at 1 nothing would be seen of them",
                "use about 0.02",
            )

    def around(self, denoise: Denoiser, process: Process) -> Denoiser:
        """Returns the denoiser that is told so."""

        def told(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
            clean = call.t == 0
            t, t_next = (
                jnp.where(clean & (level == 0), self.level, level)
                for level in (call.t, call.t_next)
            )
            x = jnp.where(expand(clean, x), expand(process.alpha(t), x) * x, x)
            return denoise(x, call._replace(t=t, t_next=t_next), carry)

        return told
