"""Media files: the one decoder, to upright RGB of BT.709 with square pixels, and the writers."""

from jvdm.media.film import FPS_RANGE, check_fps, opened
from jvdm.media.frames import MATTE, MAX_PIXELS, Image, resized
from jvdm.media.picture import read_image, rgb_of
from jvdm.media.writing import WRITERS, write_png

__all__ = [
    "FPS_RANGE",
    "MATTE",
    "MAX_PIXELS",
    "WRITERS",
    "Image",
    "check_fps",
    "opened",
    "read_image",
    "resized",
    "rgb_of",
    "write_png",
]
