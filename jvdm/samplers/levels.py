"""Level grids: the noise levels that one frame passes through, from noise to clean.

A grid is a descending float32 array of `S + 1` levels that ends at exactly 0.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.errors import ConfigError
from jvdm.samplers.process import Process


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


def exp_shift_levels(levels: Float[Array, "*grid"], mu: float) -> Float[Array, "*grid"]:
    """Moves a grid towards noise by the factor `exp(mu)` of the noise-to-signal ratio.

    This is `shift_levels(levels, exp(mu))`, the form of dynamic shifting; see `resolution_mu`.
    """
    return shift_levels(levels, math.exp(mu))


def resolution_mu(
    tokens: int, base: tuple[int, float] = (256, 0.5), largest: tuple[int, float] = (4096, 1.15)
) -> float:
    """Returns the `mu` of a video of `tokens` tokens, on a line through two known points.

    Args:
        tokens: Tokens of the sequence; may lie outside of the two points.
        base: Tokens and `mu` of the first point; the defaults are those of Flux.
        largest: Tokens and `mu` of the second point.
    """
    slope = (largest[1] - base[1]) / (largest[0] - base[0])
    return base[1] + slope * (tokens - base[0])


def stretch_to_terminal(
    levels: Float[Array, " levels"], terminal: float
) -> Float[Array, " levels"]:
    """Scales the clean parts `1 - l` so that the last level above 0 is `terminal`.

    Args:
        levels: A grid of at least two steps that ends at 0.
        terminal: In 0..1, both excluded.

    Raises:
        ConfigError: If `terminal` is outside, or the grid has a single step.
    """
    if not 0 < terminal < 1 or levels.shape[0] < 3:
        raise ConfigError(
            f"a grid of {levels.shape[0] - 1} steps is to end at {terminal} before 0",
            "the terminal level lies between 0 and 1, and two steps are needed",
            "use a terminal level such as 0.1, and more steps",
        )
    clean = (1.0 - levels[:-1]) * ((1.0 - terminal) / (1.0 - levels[-2]))
    return jnp.append(1.0 - clean, levels[-1])


def karras_levels(
    num_steps: int, low: float, high: float, rho: float = 7.0
) -> Float[Array, " levels"]:
    """Returns levels whose `rho`-th roots are equally spaced from `high` to `low`, then 0.

    Args:
        num_steps: Number of steps, 1 or more.
        low: Last level above 0.
        high: First level.
        rho: 1 is linear; 7 spends most steps near clean data.

    Raises:
        ConfigError: If the levels do not descend.

    Reference: Karras et al., arXiv:2206.00364, equation 5; meant for `edm`.
    """
    _check_range(num_steps, low, high)
    place = np.linspace(0.0, 1.0, num_steps)
    levels = (high ** (1 / rho) + place * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return _ending_clean(levels)


def exponential_levels(num_steps: int, low: float, high: float) -> Float[Array, " levels"]:
    """Returns levels with equal ratios from `high` to `low`, then 0.

    Raises:
        ConfigError: If the levels do not descend.
    """
    _check_range(num_steps, low, high)
    return _ending_clean(np.geomspace(high, low, num_steps))


def beta_levels(
    num_steps: int, low: float, high: float, alpha: float = 0.6, beta: float = 0.6
) -> Float[Array, " levels"]:
    """Returns quantiles of a beta distribution from `high` to `low`, then 0.

    Args:
        num_steps: Number of steps, 1 or more.
        low: Last level above 0.
        high: First level.
        alpha: Below 1 with `beta`, most steps are spent near both ends.
        beta: The other parameter of the distribution.

    Raises:
        ConfigError: If the levels do not descend, or a parameter is not positive.

    Reference: Lee et al., Beta Sampling is All You Need, arXiv:2407.12173.
    """
    import scipy.special  # takes a while, and few need it

    _check_range(num_steps, low, high)
    if not (alpha > 0 and beta > 0):
        raise ConfigError(f"a beta distribution of {alpha} and {beta}", "", "use positive numbers")
    share = scipy.special.betaincinv(alpha, beta, np.linspace(1.0, 0.0, num_steps))
    return _ending_clean(low + share * (high - low))


def uniform_lambda_levels(
    process: Process, num_steps: int, low: float, high: float
) -> Float[Array, " levels"]:
    """Returns levels with equal steps in `lambda` from that of `high` to that of `low`, then 0.

    Args:
        process: The corruption process, which defines `lambda`.
        num_steps: Number of steps, 1 or more.
        low: Last level above 0.
        high: First level; below 1 where `alpha(1)` is 0.

    Raises:
        ConfigError: If the levels do not descend, or `lambda` is infinite at an end.

    Reference: Lu et al., DPM-Solver, arXiv:2206.00927, section 3.4.
    """
    _check_range(num_steps, low, high)
    ends = np.asarray(process.lam(jnp.asarray([high, low], jnp.float32)), np.float64)
    if not np.isfinite(ends).all():
        raise ConfigError(
            f"levels from {high} to {low} with equal steps in lambda",
            "lambda is infinite at pure noise and at clean data",
            "use levels such as 0.999 and 0.001",
        )
    return _ending_clean(
        process.inv_lam(jnp.asarray(np.linspace(ends[0], ends[1], num_steps), jnp.float32))
    )


def linear_quadratic_levels(
    num_steps: int, threshold: float = 0.025, linear_steps: int | None = None
) -> Float[Array, " levels"]:
    """Returns levels that leave noise slowly and evenly, then fall quadratically.

    Args:
        num_steps: Number of steps, 2 or more.
        threshold: How much noise the even part removes, in 0..1.
        linear_steps: Steps of the even part; half of all if None.

    Raises:
        ConfigError: If a part has no step, or `threshold` is outside.

    Reference: Movie Gen, arXiv:2410.13720, section 3.4.2.
    """
    even = num_steps // 2 if linear_steps is None else linear_steps
    if not (0 < threshold < 1 and 0 < even < num_steps):
        raise ConfigError(
            f"{even} of {num_steps} steps remove {threshold} of the noise evenly",
            "both parts need a step, and the threshold lies between 0 and 1",
            "use 2 steps or more",
        )
    rest = num_steps - even
    begun = threshold * np.arange(even) / even
    # Continuous in value and slope where the parts meet, and 1 at the end.
    slope = threshold / even
    place = np.arange(rest + 1)
    curve = (1 - threshold - slope * rest) / rest**2
    removed = np.concatenate([begun, threshold + slope * place + curve * place**2])
    return _ending_clean(1.0 - removed[:-1])


def explicit_levels(levels: Sequence[float]) -> Float[Array, " levels"]:
    """Returns these levels as a grid; 0 is added where it is missing.

    Raises:
        ConfigError: If they do not descend.
    """
    found = np.asarray(levels, np.float64)
    if found.size and found[-1] == 0:
        found = found[:-1]
    return _ending_clean(found)


def _check_range(num_steps: int, low: float, high: float) -> None:
    if num_steps < 1 or not 0 < low <= high:
        raise ConfigError(
            f"{num_steps} levels from {high} to {low}",
            "a grid descends from a high level to a low one above 0",
            "use 1 or more levels and 0 < low <= high",
        )


def _ending_clean(levels: Float[Array, " S"] | Float[np.ndarray, " S"]) -> Float[Array, " levels"]:
    """Returns the levels with 0 behind them."""
    grid = np.append(np.asarray(levels, np.float64), 0.0)
    if not np.isfinite(grid).all() or (np.diff(grid) >= 0).any():
        shown = np.array2string(grid, precision=4, threshold=8)
        raise ConfigError(f"the levels {shown} do not descend to 0", "", "sort them, 0 last")
    return jnp.asarray(grid, jnp.float32)
