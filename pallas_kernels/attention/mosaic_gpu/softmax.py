"""The softmax of the forward pass for Hopper: weights of scores, tile by tile."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from pallas_kernels.attention.mosaic_gpu.intrinsics import LOG2E, cut_columns, widened
from pallas_kernels.attention.mosaic_gpu.tiles import MASKED

GROWTH = 8.0  # in powers of two: a weight is at most 2**GROWTH before it is divided by the sum


class Softmax(NamedTuple):
    """How scores of 64 queries become weights, in powers of two; sums stay per lane to the end."""

    scale: float
    """Of scores."""
    floor: float | None
    """Of peaks of rows, above what is masked; None where every query finds a key."""
    growth: float = GROWTH
    """Of the maximum of a row, from which on it is the peak."""

    @classmethod
    def of(cls, scale: float, restricted: bool) -> "Softmax":
        """Returns that of scores with a factor, positive."""
        return cls(scale * LOG2E, MASKED * scale * LOG2E / 2 if restricted else None)

    def first(self, s: Float[Array, "64 C"]) -> tuple[Array, Array, Array]:
        """Returns the weights of the first keys, their peak per row, their sum per lane."""
        peak = s.max(axis=1) * self.scale
        if self.floor is not None:  # or rounding decides over the weights of masked scores
            peak = jnp.maximum(peak, self.floor)
        p = jnp.exp2(s * self.scale - across(peak, s))
        return p, peak, _lane_sums(p)

    def further(
        self, s: Float[Array, "64 C"], limit: Any, peak: Array, total: Array
    ) -> tuple[Array, ...]:
        """The same of further keys, and the factor of what was accumulated before.

        Args:
            s: Their scores.
            limit: How many of them count, for half as many are computed with where these suffice;
                None for all.
            peak: Of those before.
            total: Of those before.
        """
        columns = s.shape[1]
        if limit is None:
            return self._further(s, peak, total)
        if columns == 64:
            return self._further(cut_columns(s, limit, MASKED), peak, total)

        def narrow() -> tuple[Array, ...]:
            p, *rest = self._further(cut_columns(s[:, :64], limit, MASKED), peak, total)
            return widened(p, columns), *rest

        def wide() -> tuple[Array, ...]:
            return self._further(cut_columns(s, limit, MASKED, 64), peak, total)

        return lax.cond(limit > 64, wide, narrow)

    def _further(self, s: Array, peak: Array, total: Array) -> tuple[Array, ...]:
        return self.weights(s, self.top(s), peak, total)

    def top(self, s: Float[Array, "64 C"]) -> Float[Array, "64"]:
        """Returns the maximum of every row."""
        return s.max(axis=1) * self.scale

    def weights(self, s: Array, top: Array, peak: Array, total: Array) -> tuple[Array, ...]:
        """As `further`, of scores with these maxima of rows."""
        new = jnp.where(top > peak + self.growth, top, peak)
        p = jnp.exp2(s * self.scale - across(new, s))
        factor = jnp.exp2(peak - new)
        return p, new, total * across(factor, total) + _lane_sums(p), factor

    def end(self, acc: Float[Array, "64 D"], peak: Array, total: Array) -> tuple[Array, Array]:
        """Returns values, of what was accumulated, and the log-sum-exp of the scores."""
        total = total.sum(axis=1)
        lse = peak * (1 / LOG2E) + jnp.log(total)
        factor = 1.0 / total
        if self.floor is not None:
            some = peak > self.floor
            factor, lse = jnp.where(some, factor, 0.0), jnp.where(some, lse, -jnp.inf)
        return acc * across(factor, acc), lse


def across(rows: Shaped[Array, " R"], like: Shaped[Array, "R C"]) -> Shaped[Array, "R C"]:
    """Returns numbers of rows in all columns."""
    return lax.broadcast_in_dim(rows, like.shape, [0])


def _lane_sums(p: Array) -> Array:
    """Adds the columns of a tile that one lane holds: `[64, columns]` to `[64, 8]`."""
    parts = [p[:, start : start + 8] for start in range(0, p.shape[1], 8)]
    while len(parts) > 1:
        parts = [one + two for one, two in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
