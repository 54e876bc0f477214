"""Block after block: the matrix of DualParal, whose rows take one step with one block each."""

import dataclasses

import jax
import numpy as np

from jvdm.arrays import Array, Float, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.matrices import TimestepMatrix, from_index


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaircaseMatrix:
    """A queue of blocks, each one step behind the one before it, that are stepped one by one.

    In an iteration every block in work makes a step, from the noisiest to the cleanest; a block
    enters with every iteration, and leaves when it is clean. The first block has `context` frames
    more, so that every block has as many frames before its own.

    Attributes:
        block: Latent frames of a block (static).
        context: Latent frames before a block that it sees (static).

    Reference: DualParal, arXiv:2505.21070, section 3.
    """

    block: int = dataclasses.field(default=8, metadata={"static": True})
    context: int = dataclasses.field(default=8, metadata={"static": True})

    def __call__(self, levels: Float[Array, " levels"], latent_frames: int) -> TimestepMatrix:
        """Returns the matrix.

        Raises:
            ConfigError: If the frames are not whole blocks; the two nearest numbers are named.
        """
        blocks, rest = divmod(latent_frames - self.context, self.block)
        if blocks < 1 or rest:
            low, high = (self.context + max(blocks + i, 1) * self.block for i in (0, 1))
            what = f"{latent_frames} latent frames in blocks of {self.block}"
            why = f"the first block has {self.context} frames more than the others"
            raise ConfigError(what, why, f"use {low} or {high} latent frames")
        index = [np.zeros(latent_frames, np.int32)]
        for block in order(blocks, levels.shape[0] - 1):
            row = index[-1].copy()
            row[self.context * (block > 0) + self.block * block :][: self.size(block)] += 1
            index.append(row)
        return from_index(levels, np.stack(index))

    def size(self, block: int) -> int:
        """Returns the latent frames of a block."""
        return self.block + (self.context if block == 0 else 0)


def order(blocks: int, steps: int) -> list[int]:
    """Returns which block each row takes a step with."""
    iterations = range(steps + blocks - 1)
    live = (range(min(i, blocks - 1), max(0, i - steps + 1) - 1, -1) for i in iterations)
    return [block for some in live for block in some]
