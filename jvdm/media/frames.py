"""One decoded frame of FFmpeg as people see it."""

from typing import Any

import numpy as np

from jvdm.arrays import UInt8
from jvdm.media import colour

MATTE = 255  # grey value under transparent pixels: white, as on a page
MAX_PIXELS = 64_000_000  # of a picture or frame; more costs gigabytes for a result of any size

Image = UInt8[np.ndarray, "H W 3"]

_UNTAGGED, _BT709 = 2, 1  # colour matrices as FFmpeg numbers them
_UNKNOWN_MATRICES = {3, 8, *range(11, 18)}  # such as YCgCo and ICtCp: FFmpeg would misread them


def rgb(frame: Any, notes: list[str]) -> Image:
    """Returns an `av.VideoFrame` as RGB of BT.709, as it is stored: see `upright`.

    Args:
        frame: Decoded frame. Without a tag, high definition is BT.709 and the rest BT.601.
        notes: What was done to its colours is added here, once.

    Raises:
        ValueError: If it is damaged, or its colours cannot be understood.
    """
    if frame.is_corrupt:
        raise ValueError(f"the frame at {frame.time:g} s is damaged")
    if frame.colorspace in _UNKNOWN_MATRICES:
        raise ValueError(f"its colour matrix (number {frame.colorspace} of FFmpeg) is not known")
    wide = colour.is_wide(frame.color_trc, frame.color_primaries)
    alpha = any(component.is_alpha for component in frame.format.components)
    is_hd = frame.width >= 1280 or frame.height > 576
    pixels = frame.to_ndarray(
        format="rgb48le" if wide else "rgba" if alpha else "rgb24",
        src_colorspace=_BT709 if is_hd and frame.colorspace == _UNTAGGED else None,
    )
    if wide:
        note(notes, "wide colours or high dynamic range were brought to BT.709")
        pixels = colour.to_bt709(pixels, frame.color_trc, frame.color_primaries)
    elif alpha:
        pixels = composited(pixels, notes)
    return pixels


def composited(pixels: UInt8[np.ndarray, "H W 4"], notes: list[str]) -> Image:
    """Returns RGBA on white."""
    alpha = pixels[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    note(notes, "transparent parts were put on white")
    mixed = pixels[..., :3] * alpha + MATTE * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def resized(picture: Image, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the picture stretched to another size, bicubic."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    scaled = frame.reformat(width=width, height=height, interpolation="BICUBIC")
    return scaled.to_ndarray(format="rgb24")


def note(notes: list[str], text: str) -> None:
    """Adds a note once."""
    if text not in notes:
        notes.append(text)


def upright(pixels: Image, frame: Any) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the pixels of a frame turned and mirrored as its display matrix says.

    A matrix of another angle counts as the nearest quarter turn.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV before 19 stumbles over kinds of side data that it does not know
        return np.rot90(pixels, round(frame.rotation / 90))
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int)
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
