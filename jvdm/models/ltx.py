"""LTXDiT: the transformer of LTX-Video, with a noise level for every frame.

LTX-Video (HaCohen et al., arXiv:2501.00103) as Diffusers' `LTXVideoTransformer3DModel` computes
it; see `jvdm.models.adaln_single` for what differs. Cells are so large (32 x 32 pixels of 8
frames) that every one is a token.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.attention import TokenGrid
from jvdm.models.adaln_single import AdaLNSingle
from jvdm.models.attention import Positions
from jvdm.models.layers import Rotary

FARTHEST = (20.0, 2048.0, 2048.0)  # seconds and pixels that positions are fractions of
HIGHEST = 1e4  # ratio of the fastest to the slowest frequency


@dataclasses.dataclass(frozen=True)
class FractionalPositions(Positions):
    """Tokens are at fractions of 20 seconds and 2048 pixels, and every head turns its own way.

    A third of all pairs of features of all heads, from the first head to the last, turns with
    each axis, in growing frequencies: those of a head are a band of them (LTX-Video, section
    3.3.1).

    Attributes:
        strides: Pixel frames, rows and columns of a cell.
        fps: Pixel frames per second.
        from_first: Whether a cell is where its first frame is, the first cell being one frame
            long (LTX-Video 0.9.5 and later); else cells are equally far apart in time.
    """

    strides: tuple[int, int, int]
    fps: float
    from_first: bool

    def table(self, frames: Float[Array, " F"], grid: TokenGrid) -> Rotary:
        """Returns the angles of all heads, side by side, of whole frames in raster order."""
        pairs = grid.heads * grid.head_dim // 2
        each = pairs // 3  # pairs that turn with an axis; the first of all may not turn
        steps, rows, columns = self.strides
        first = steps * frames
        if self.from_first:
            first = jnp.maximum(first + 1.0 - steps, 0.0)
        tall, wide = jnp.arange(grid.height), jnp.arange(grid.width)
        places = (first / self.fps, rows * tall, columns * wide)
        # Computed on the host: the exponential of an accelerator is off where it matters most.
        rates = np.float32(HIGHEST) ** np.linspace(0.0, 1.0, each, dtype=np.float32)
        rates = rates * np.float32(math.pi / 2)
        angles = [
            jnp.asarray(rates)[None] * (2.0 * place.astype(jnp.float32) / whole - 1.0)[:, None]
            for place, whole in zip(places, FARTHEST, strict=True)
        ]

        def parts(turned: Callable[[Array], Array]) -> tuple[Array, Array]:
            time, row, column = (
                jnp.where(jnp.arange(3) == axis, turned(own)[..., None], 0).reshape(len(own), -1)
                for axis, own in enumerate(angles)
            )
            place = (row[:, None] + column[None]).reshape(-1, 3 * each)
            free = ((0, 0), (pairs - 3 * each, 0))
            return jnp.pad(time, free, constant_values=turned(jnp.zeros(()))), jnp.pad(place, free)

        frame, place = zip(parts(jnp.cos), parts(jnp.sin), strict=True)
        return Rotary(frame, place)


class LTXDiT(AdaLNSingle):
    """Text to video with the network of LTX-Video; the defaults are those of its 2B model.

    The 13B model has `width` 4096, `depth` 48, `head_dim` 128, `mlp_width` 16384 and
    `from_first`. Levels are told in thousandths (`thousandths`); the padding of a prompt is not
    read. A run at another frame rate differs from one at `fps` by its positions alone: frame `f`
    of `r` frames per second is where frame `f fps / r` is, but for `from_first`.

    Attributes:
        strides: Pixel frames, rows and columns of a cell.
        fps: Frames per second of the video.
        from_first: Whether a cell is where its first frame is (`FractionalPositions`).
    """

    width: int = 2048
    depth: int = 28
    latent_channels: int = 128
    head_dim: int = 64
    mlp_width: int = 8192
    strides: tuple[int, int, int] = (8, 32, 32)
    fps: float = 25.0
    from_first: bool = False

    wide: ClassVar[tuple[str, ...]] = ()
    """None: in 16 bits Diffusers rounds the embedding of levels too, where it keeps that of Wan."""

    @property
    def turns(self) -> FractionalPositions:
        """How heads turn with the place of a token."""
        return FractionalPositions(self.strides, self.fps, self.from_first)

    def made(self) -> dict[str, Any]:
        """Returns the fields of the layers beside those of `TransformerLayer`."""
        return {"centred": False, "cross_norm": False, "head_epsilon": 1e-5}
