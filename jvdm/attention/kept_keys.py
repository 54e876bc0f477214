"""Full attention whose keys and values are kept, so that some tokens can ask alone."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int
from jvdm.attention.dense import Dense
from jvdm.attention.policy import AttentionCall, TokenGrid
from jvdm.errors import ConfigError


class Kept(NamedTuple):
    """What a layer remembers.

    Attributes:
        k: `[B, L, N, D]`, the last keys of all tokens, with their positions.
        v: `[B, L, N, D]`, their values.
        places: i32[A], tokens that a call is of, where it is not of all.
    """

    k: Float[Array, "B L N D"]
    v: Float[Array, "B L N D"]
    places: Int[Array, " A"]


@dataclasses.dataclass(frozen=True)
class KeptKeys(Dense):
    """Tokens attend to the keys of all, which are as old as the last call that was of them.

    A call is of all tokens, or of those at `places`, whose keys and values replace the kept ones.
    """

    share: float = 0.5
    """Tokens that ask alone, as a share of all, in (0, 1]."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a share that is none."""
        if not 0 < self.share <= 1:
            what = f"a share of {self.share:g} of the tokens"
            raise ConfigError(what, "it is above 0 and at most 1", "use 0.5 for half of them")

    def init(self, grid: TokenGrid) -> Kept:
        """Returns room for keys and values; no call was of anything yet."""
        nothing = jnp.zeros((grid.batch, grid.tokens, grid.heads, grid.head_dim), grid.dtype)
        asking = max(round(self.share * grid.tokens), 1)
        return Kept(nothing, nothing, jnp.arange(asking, dtype=jnp.int32))

    def attended(self, q, k, v, state: Kept, call: AttentionCall):
        """Returns all keys and values, those of this call among them."""
        k, v = call.turn(k).astype(state.k.dtype), v.astype(state.v.dtype)
        if q.shape[1] < call.grid.tokens:
            k, v = state.k.at[:, state.places].set(k), state.v.at[:, state.places].set(v)
        return k, v, None, state._replace(k=k, v=v)
