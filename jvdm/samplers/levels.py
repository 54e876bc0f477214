"""Level grids: the noise levels that one frame passes through, from noise to clean.

A grid is a descending float32 array of `S + 1` levels that ends at exactly 0.
"""

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.errors import ConfigError


def linspace_levels(num_steps: int, t_max: float = 1.0) -> Float[Array, " levels"]:
    """Returns `num_steps + 1` equally spaced levels from `t_max` to 0.

    Raises:
        ConfigError: If `num_steps` is not positive.

    Example:
        >>> linspace_levels(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if num_steps < 1:
        raise ConfigError(
            f"{num_steps} denoising steps were asked for",
            "at least one step leads from noise to a video",
            "use 1 or more; 16 is a good start",
        )
    return jnp.asarray(np.linspace(t_max, 0.0, num_steps + 1), jnp.float32)


def shift_levels(
    levels: Float[Array, "*grid"], shift: float | Float[Array, ""]
) -> Float[Array, "*grid"]:
    """Moves a grid towards noise: `shift l / (1 + (shift - 1) l)`; 0 and 1 stay.

    More steps are spent at high levels, where large videos lose their layout later than
    small ones. Shifts compose: `a` after `b` is `a b`, and 1 changes nothing.

    Args:
        levels: Levels in 0..1.
        shift: Positive factor of the noise-to-signal ratio; above 1 adds noise.

    Reference: Esser et al., arXiv:2403.03206, equation 23.

    Example:
        >>> shift_levels(linspace_levels(2), 3.0).tolist()
        [1.0, 0.75, 0.0]
    """
    # Written so that 1 stays exactly 1 for every shift.
    return levels / (levels + (1.0 - levels) / shift)
