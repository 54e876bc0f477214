"""The protocol of attention policies: who may attend to whom, chosen at run time."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, NoiseLevels, PyTree
from jvdm.samplers import Row
from pallas_kernels import BlockMask, TileOrder


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """How a flat sequence of video tokens is laid out: frames, then rows, then columns.

    Also how many sequences there are, and heads, which the sizes of a state depend on.
    """

    frames: int
    height: int
    width: int
    batch: int = 1
    """Sequences: samples times branches of guidance that are evaluated together."""
    heads: int = 1
    head_dim: int = 64
    dtype: str = "float32"
    """Number type of queries, keys and values."""

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.frames * self.height * self.width

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width


Among = Callable[..., Any]
"""`among(q, k, v, mask)` returns attended values; keys have positions, None is all tokens.

`among(q, k, v, mask, return_lse=True)` returns the log-sum-exp of the scores too, f32[B, N, L];
`among(q, k, v, mask, past=past)` attends to keys of a `pallas_kernels.Past` too, those before.
"""

Turn = Callable[..., Array]
"""`turn(k)` gives keys `[B, L, N, D]` of the frames of a call their rotary positions;
`turn(k, frames)` those of `F` frames at these places in time, f32[F]."""


def _as_they_are(k: Array, frames: Array | None = None) -> Array:
    """Leaves keys without positions."""
    return k


class AttentionCall(NamedTuple):
    """Where in a run, and in a network, a policy chooses.

    Attributes:
        layer: i32[], index of the layer.
        row: The row of the run, and the window of frames.
        t: f32[B, F], noise level of each frame, as the network is told it.
        grid: Layout of the tokens (static).
        order: Order that the tokens of every frame are in; None is raster order (static).
        turn: Gives keys of whole frames their rotary positions (static).
        common: What the policy chose for all layers of the call, if it does (`Policy.common`).
        gate: `[B, L, N, D]`, what the layer says of a second term of a policy that is `gated`;
            None where its weights have no such port, which is zeros.
    """

    layer: Int[Array, ""]
    row: Row
    t: NoiseLevels
    grid: TokenGrid
    order: TileOrder | None = None
    turn: Turn = _as_they_are
    common: PyTree = None
    gate: Float[Array, "B L N D"] | None = None


@typing.no_type_check
@flax.struct.dataclass
class KeptTokens:
    """Keys without positions and values that a layer made before, and where the window began.

    Attributes:
        k: `[B, L, N, D]`, keys.
        v: `[B, L, N, D]`, values.
        frame: i32[], first latent frame of the window that they are of, -1 before the first call.
    """

    k: Float[Array, "B L N D"]
    v: Float[Array, "B L N D"]
    frame: Int[Array, ""]

    @classmethod
    def none(cls, grid: TokenGrid, tokens: int) -> "KeptTokens":
        """Returns room for so many tokens."""
        nothing = jnp.zeros((grid.batch, tokens, grid.heads, grid.head_dim), grid.dtype)
        return cls(nothing, nothing, jnp.int32(-1))


@runtime_checkable
class Policy(Protocol):
    """Chooses, layer by layer and row by row, which tokens attend to which.

    A policy is a frozen dataclass whose fields can be written as JSON, and a subclass of
    this. What a layer remembers from row to row is `state`, a pytree of arrays; the model
    keeps one per layer.
    """

    gated: ClassVar[bool] = False
    """Whether layers are made with a port, zero at first, that tells `AttentionCall.gate`."""

    @property
    def banks(self) -> int:
        """For how many noise levels it keeps frames apart; 0 if it keeps finished ones, or none."""
        return 0

    @property
    def period(self) -> int:
        """After how many rows of a phase it does the same again: 1 if all rows are alike."""
        return 1

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """Divides the rows of a run into phases: a name and a number of rows each."""
        return (("all", num_rows),)

    def in_phase(self, name: str) -> "Policy":
        """Returns the policy of one of its phases, whose state has the same structure."""
        return self

    def in_layers(self, depth: int) -> tuple[tuple["Policy", int], ...]:
        """Divides the layers of a network: a policy and a number of layers each.

        Raises:
            ConfigError: If the policy cannot run in so many layers.
        """
        return ((self, depth),)

    def check_weights(self, digests: Mapping[str, str]) -> None:
        """Refuses weights, of whose files these are the sha256, if it was made for others.

        Raises:
            ConfigError: If it was.
        """

    def order(self, grid: TokenGrid) -> TileOrder | None:
        """Returns the order in which it wants the tokens of every frame; None is raster order.

        The network permutes its tokens once, before its first layer, and back after the last.
        """
        return None

    def positions(
        self, positions: Float[Array, " W"], row: Row, state: PyTree
    ) -> Float[Array, " W"]:
        """Returns the places in time that the frames of a window have for the network.

        `state` is that of the first layer before the row.
        """
        return positions

    def slots(self, frames: Int[Array | np.ndarray, " W"]) -> Int[Array, " W"]:
        """Returns where in its state it keeps the keys of each frame that a row writes, or -1."""
        return jnp.full(len(frames), -1)

    def common(self, states: PyTree, row: Row, grid: TokenGrid) -> PyTree:
        """Returns what it chooses once for all layers of a call, by their states, stacked.

        What every layer is given whole, to read its own part where it is, is of it too.
        """
        return None

    def init(self, grid: TokenGrid) -> PyTree:
        """Returns the state of one layer before the first row.

        Raises:
            ConfigError: If the policy cannot run on such a grid.
        """
        return None

    def attend(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        state: PyTree,
        call: AttentionCall,
        among: Among,
    ) -> tuple[Float[Array, "B L N D"], PyTree]:
        """Returns attended values, and the next state, or what `joined` makes it of.

        A policy that joins the results of several attentions writes this; others `attended`, or
        `select` alone.
        """
        k, v, mask, state = self.attended(q, k, v, state, call)
        return among(q, k, v, mask), state

    def joined(self, states: PyTree, made: PyTree, row: Row) -> PyTree:
        """Returns the next states of all layers, stacked, after the last of them.

        A policy whose state is large, and changes little, writes this: layers then hand on what
        is new, and nothing is copied that stays.

        Args:
            states: Those before the call.
            made: What `attend` returned in every layer.
            row: The row of the call.
        """
        return made

    def attended(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        state: PyTree,
        call: AttentionCall,
    ) -> tuple[Float[Array, "B K N D"], Float[Array, "B K N D"], BlockMask | None, PyTree]:
        """Returns keys and values that are attended to, the blocks among them, and the next state.

        Keys come without positions and are returned with them (`call.turn`). A policy that
        chooses among the tokens of the window writes `select` alone.
        """
        k = call.turn(k)
        mask, state = self.select(q, k, v, state, call)
        return k, v, mask, state

    def select(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        state: PyTree,
        call: AttentionCall,
    ) -> tuple[BlockMask | None, PyTree]:
        """Returns the blocks that are attended to, None for all tokens, and the next state.

        Queries, keys and values are in the order that it asked for, padding included.
        """
        ...
