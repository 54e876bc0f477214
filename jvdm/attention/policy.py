"""The protocol of attention policies: who may attend to whom, chosen at run time."""

import dataclasses
from typing import Protocol, runtime_checkable

from jvdm.arrays import Array, Bool, Float, PyTree


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


@runtime_checkable
class Policy(Protocol):
    """Chooses, layer by layer, which tokens attend to which.

    A policy is a frozen dataclass; what it remembers between layers and steps
    is `state`, a pytree that the model carries.
    """

    def init(self, grid: TokenGrid) -> PyTree:
        """Returns the state before the first layer of the first step."""
        ...

    def select(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        state: PyTree,
        grid: TokenGrid,
    ) -> tuple[Bool[Array, "#B #N L L"] | None, PyTree]:
        """Returns the mask of allowed pairs, None for all of them, and the next state."""
        ...
