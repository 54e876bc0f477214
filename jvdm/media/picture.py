"""Pictures through Pillow: files and objects, as RGB."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.errors import ConfigError
from jvdm.media.frames import MAX_PIXELS, Image, composited, note

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def read_image(path: str | Path, notes: list[str] | None = None) -> Image:
    """Reads a picture upright, on white where it is transparent, in the colours of sRGB.

    Args:
        path: PNG, JPEG, WebP, GIF (the first frame), BMP, TIFF or PPM.
        notes: What was done to it is added here.

    Raises:
        ConfigError: If the file is missing, cut, of more than `MAX_PIXELS`, or no picture.
    """
    from PIL import Image as Pillow

    path = Path(path).expanduser()
    if not os.path.isfile(path):
        raise ConfigError(f"image {path} does not exist", "", "give the path of a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: they are counted below
            with Pillow.open(path, formats=_FORMATS) as image:
                return rgb_of(image, notes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.what}", error.why, error.fix) from error
    except Exception as error:  # a damaged file makes a plugin of Pillow raise anything
        what = f"{path} is not a picture"
        raise ConfigError(what, str(error), "use a PNG or JPEG file") from error


def rgb_of(image: Any, notes: list[str] | None = None) -> Image:
    """Returns a `PIL.Image` of any mode as RGB; see `read_image`.

    Raises:
        ConfigError: If it has more than `MAX_PIXELS`, or pixels without a range.
    """
    from PIL import ImageOps

    notes = [] if notes is None else notes
    if image.width * image.height > MAX_PIXELS:
        what = f"the picture has {image.width}x{image.height} pixels"
        raise ConfigError(what, f"at most {MAX_PIXELS:,} are read", "make it smaller")
    if image.mode == "F":
        raise ConfigError("the picture has float pixels", "their range is unknown", "convert it")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        grey = np.asarray(image).clip(0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    transparent = image.has_transparency_data
    image = _srgb(image, notes)
    if transparent:
        return composited(np.asarray(image.convert("RGBA")), notes)
    return np.asarray(image.convert("RGB"))


def _srgb(image: Any, notes: list[str]) -> Any:
    """Returns the picture in the colours of sRGB if a profile says that it has others."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        given, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        if "sRGB" in ImageCms.getProfileDescription(given):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, given, srgb, outputMode=mode)
    except (ImageCms.PyCMSError, OSError):  # an unreadable profile says nothing
        return image
    note(notes, "its colour profile was brought to sRGB")
    return converted
