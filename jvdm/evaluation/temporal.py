"""How frames follow each other: change, flicker and seams."""

from collections.abc import Sequence

import jax.numpy as jnp

from jvdm.arrays import Array, Float, Frames
from jvdm.errors import ConfigError

_STILL = 1e-4  # Mean absolute change of a clip in which nothing moves, after rounding.


def frame_change(frames: Frames) -> Float[Array, " B"]:
    """Mean absolute difference of neighbouring frames, of each clip.

    Where a model neither stops nor flickers, its samples change as much as the
    autoencoder's reconstructions of true clips do.
    """
    return jnp.abs(frames[:, 1:] - frames[:, :-1]).mean((1, 2, 3, 4))


def jitter(frames: Frames) -> Float[Array, " B"]:
    """Mean absolute second difference over time: what changes and changes back."""
    second = frames[:, 2:] - 2.0 * frames[:, 1:-1] + frames[:, :-2]
    return jnp.abs(second).mean((1, 2, 3, 4))


def seam_index(frames: Frames, borders: Sequence[int] | None = None) -> Float[Array, " B"]:
    """Largest change at a border over the median change elsewhere in the clip.

    Args:
        frames: Clips.
        borders: Frames that begin a new chunk or scene, 1 or later; None takes the frame of
            each clip that changes most.

    Returns:
        About 1 where a border cannot be told from the other frames.

    Raises:
        ConfigError: If no frame begins there, or no other frame is left to compare with.
    """
    change = jnp.abs(frames[:, 1:] - frames[:, :-1]).mean((2, 3, 4))
    last = change.shape[1]
    at = {last} if borders is None else set(borders)
    if not at or not 1 <= min(at) <= max(at) <= last or len(at) == last:
        what = f"borders {sorted(at)} in clips of {last + 1} frames"
        why = f"a border is one of the frames 1 to {last}, and others must be left"
        raise ConfigError(what, why, "give the first frame of every chunk but the first one")
    change = jnp.sort(change, axis=1) if borders is None else change
    border = jnp.zeros(last, bool).at[jnp.asarray(sorted(at)) - 1].set(True)
    usual = jnp.nanmedian(jnp.where(border[None], jnp.nan, change), axis=1)
    return (jnp.where(border[None], change, 0.0).max(1) + _STILL) / (usual + _STILL)
