"""The protocol of attention policies: who may attend to whom, chosen at run time."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

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

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.frames * self.height * self.width

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width


class AttentionCall(NamedTuple):
    """Where in a run, and in a network, a policy chooses.

    Attributes:
        layer: i32[], index of the layer.
        row: The row of the run, and the window of frames.
        t: f32[B, F], noise level of each frame, as the network is told it.
        grid: Layout of the tokens (static).
        order: Order that the tokens of every frame are in; None is raster order (static).
    """

    layer: Int[Array, ""]
    row: Row
    t: NoiseLevels
    grid: TokenGrid
    order: TileOrder | None = None


@runtime_checkable
class Policy(Protocol):
    """Chooses, layer by layer and row by row, which tokens attend to which.

    A policy is a frozen dataclass whose fields can be written as JSON, and a subclass of
    this. What a layer remembers from row to row is `state`, a pytree of arrays; the model
    keeps one per layer.
    """

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

    def order(self, grid: TokenGrid) -> TileOrder | None:
        """Returns the order in which it wants the tokens of every frame; None is raster order.

        The network permutes its tokens once, before its first layer, and back after the last.
        """
        return None

    def init(self, grid: TokenGrid) -> PyTree:
        """Returns the state of one layer before the first row.

        Raises:
            ConfigError: If the policy cannot run on such a grid.
        """
        return None

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
