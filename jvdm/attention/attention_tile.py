"""Attention tiles: frames attend to themselves and to a few others, which attend to everything."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Float
from jvdm.attention.blocks import Blocks
from jvdm.attention.patterns import most_references, pattern, tiled
from jvdm.attention.policy import AttentionCall
from jvdm.attention.sparse import Sparse
from jvdm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class AttentionTile(Sparse):
    """A frame attends to itself and to reference frames, and these attend to all frames.

    References lie at equal distances, the first frame of a call is one. With `a` of them `F`
    frames attend to `2 a F - a^2 + F - a` pairs of frames: linear in `F`. Each layer may have
    its own number, the same for all prompts, heads and rows, found before any run
    (`jvdm attention --search efficient_vdit`).

    Reference: Efficient-vDiT, Ding et al., arXiv:2502.06155; the mask is reconstructed, and gives
    the nine published sparsities.
    """

    equal: ClassVar[str] = "its lists are the same in all rows and heads, and references say layers"

    density: float = 0.8
    references: tuple[int, ...] | list[int] = ()
    """Reference frames of every layer, one number for all or one for each; without any all have
    the most that `density` allows."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        super().__post_init__()
        object.__setattr__(self, "references", tuple(self.references))
        if any(count < 1 for count in self.references):
            what, why = f"references are {self.references}", "a layer has one frame or more"
            raise ConfigError(what, why, "as --sampling.policy.references 2,2,3")

    def in_layers(self, depth: int):
        """Checks that every layer has a number."""
        if len(self.references) not in (0, 1, depth):
            what = f"reference frames of {len(self.references)} layers"
            raise ConfigError(what, f"the network has {depth}", f"give 1 number, or {depth}")
        return super().in_layers(depth)

    def listed(self, blocks: Blocks) -> int:
        """Returns the blocks of keys of a reference frame, which are all.

        Raises:
            ConfigError: If the density allows no reference, or there are more than frames.
        """
        self._counts(blocks)
        return blocks.count

    def choose(self, q, k, v, call: AttentionCall, blocks: Blocks):
        """Marks the tiles of the layer."""
        counts, width = self._counts(blocks), self.listed(blocks)
        if len(set(counts)) == 1:
            return pattern(blocks, "references", counts[0])[None, None], width
        every = jnp.asarray(np.stack([tiled(blocks.grid.frames, count) for count in counts]))
        mine = every[call.layer][blocks.frames[:, None], blocks.frames]
        return mine[None, None], width

    def _counts(self, blocks: Blocks) -> tuple[int, ...]:
        """Returns the reference frames of the layers, or of all."""
        frames = blocks.grid.frames
        if not self.references:
            share = round(self.density * blocks.count) / blocks.count
            return (most_references(frames, share),)
        if max(self.references) > frames:
            what = f"{max(self.references)} reference frames"
            raise ConfigError(what, f"a call sees {frames}", "use fewer")
        return tuple(self.references)


def references_of(
    errors: Float[np.ndarray, "layers F"], density: float, first: int
) -> tuple[int, ...]:
    """Returns the references of every layer: in each the fewest whose error is below one bound.

    Args:
        errors: Of every layer, what 1, 2, .. `F` references change; `F` change nothing.
        density: Mean share of attention over the layers that count, at most; the bound is the
            lowest that keeps to it.
        first: The first layer that counts; those before it have all.

    Raises:
        ConfigError: If one reference in every layer is too many.
    """
    frames = errors.shape[1]
    most_references(frames, density)
    shares = np.array([tiled(frames, count).mean() for count in range(1, frames + 1)])
    tried = ((errors[first:] <= bound).argmax(-1) for bound in np.unique(errors[first:]))
    counts = next(one for one in tried if shares[one].mean() <= density + 1e-9)
    return (frames,) * first + tuple((counts + 1).tolist())
