"""Media files: the one decoder, to upright RGB of BT.709 with square pixels, and the writers."""

from jvdm.media.film import FPS_RANGE, Film, check_fps, opened
from jvdm.media.frames import MATTE, MAX_PIXELS, Image, resized
from jvdm.media.picture import read_image, rgb_of
from jvdm.media.writing import LIVE_WRITERS, WRITERS, exact_rate, write_png

__all__ = [
    "FPS_RANGE",
    "LIVE_WRITERS",
    "MATTE",
    "MAX_PIXELS",
    "WRITERS",
    "Film",
    "Image",
    "check_fps",
    "exact_rate",
    "opened",
    "read_image",
    "resized",
    "rgb_of",
    "write_png",
]
