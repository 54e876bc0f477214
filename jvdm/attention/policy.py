"""The protocol of attention policies: who may attend to whom, chosen at run time."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

from jvdm.arrays import Array, Bool, Float, Int, NoiseLevels, PyTree
from jvdm.samplers import Row


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """How a flat sequence of video tokens is laid out: frames, then rows, then columns."""

    frames: int
    height: int
    width: int

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
        t: f32[B, F], noise level of each frame.
        grid: Layout of the tokens (static).
    """

    layer: Int[Array, ""]
    row: Row
    t: NoiseLevels
    grid: TokenGrid


@runtime_checkable
class Policy(Protocol):
    """Chooses, layer by layer, which tokens attend to which.

    A policy is a frozen dataclass; what a layer remembers from row to row is `state`,
    a pytree of arrays. The model keeps one per layer.
    """

    def init(self, grid: TokenGrid) -> PyTree:
        """Returns the state of one layer before the first row."""
        ...

    def select(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        state: PyTree,
        call: AttentionCall,
    ) -> tuple[Bool[Array, "#B #N L L"] | None, PyTree]:
        """Returns the mask of allowed pairs, None for all of them, and the next state."""
        ...
