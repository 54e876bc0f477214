"""What a network remembers between its calls, and where its frames are in the run."""

import typing

import flax.struct
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, PyTree
from jvdm.attention import Policy, TokenGrid, summary
from jvdm.models import step_cache
from jvdm.models.step_cache import Reused
from jvdm.samplers import Row


@typing.no_type_check
@flax.struct.dataclass
class Carry:
    """What one call of a network hands to the next.

    `layers` holds the state of the attention policy of every layer (leading axis
    `depth`), `positions` the absolute position of every latent frame of the run, which
    may be longer than the window that a call sees. `features` `[n, B, L, D]` are tokens
    after the layers that the model collects. A call given a carry without features collects
    none, so that all calls of a run have carries of one structure. `reused` is what a step
    cache keeps, None without one.
    """

    layers: PyTree
    positions: Float[Array, " F"]
    features: Float[Array, "n B L D"] | None = None
    reused: Reused | None = None

    @classmethod
    def first(
        cls,
        policy: Policy,
        depth: int,
        grid: TokenGrid,
        positions: Float[Array, " F"] | None = None,
    ) -> "Carry":
        """Returns the carry before the first call; positions are 0, 1, ... if None.

        Raises:
            ConfigError: If the policy cannot run on the grid, or in so many layers.
        """
        if positions is None:
            positions = jnp.arange(grid.frames, dtype=jnp.float32)
        policy.in_layers(depth)
        one = policy.init(grid)
        return cls(jax.tree.map(lambda leaf: jnp.stack([leaf] * depth), one), positions)

    def window(self, row: Row, frames: int) -> Float[Array, " W"]:
        """Returns the positions of the `frames` frames that a call sees."""
        return jax.lax.dynamic_slice_in_dim(self.positions, row.start, frames)


def ran(carry: PyTree) -> dict[str, dict[str, typing.Any]]:
    """Returns what the carry of a run says of it, by the names that its record has for it."""
    return {"attention": summary(carry), "cache": step_cache.summary(carry)}
