"""Small films of every kind, written with PyAV."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from jvdm.data.video_files import decode_clip
from jvdm.media import exact_rate
from jvdm.video import read_video

RATE = 12.0


def grey(number):
    """The grey value that tells the number of a frame."""
    return 10 * (number + 1)


def greys(count, height=32, width=48):
    return [np.full((height, width, 3), grey(number), np.uint8) for number in range(count)]


def numbers(frames):
    """Reads the numbers of frames back."""
    return np.round(np.asarray(frames)[:, 8, 8].mean(-1) / 10 - 1).astype(int).tolist()


def write(path, pictures, *, codec="libx264", pix_fmt="yuv420p", times=None, tags=(), **container):
    """Writes pictures of the format rgb24, or frames that are ready, at `RATE` or at `times`.

    Args:
        times: Seconds at which each frame is shown, in thousandths.
        tags: Attributes of the codec context, such as ("color_trc", 16).
    """
    with av.open(str(path), "w", options=container) as file:
        stream: Any = file.add_stream(codec, rate=exact_rate(RATE))
        stream.pix_fmt = pix_fmt
        for name, value in tags:
            setattr(stream.codec_context, name, value)
        if codec == "libx264":
            stream.options = {"crf": "2", "preset": "ultrafast"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = picture
            if isinstance(picture, np.ndarray):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if number == 0:
                stream.height, stream.width = frame.height, frame.width
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return Path(path)


def with_matrix(path, a, b, c, d):
    """Changes the display matrix of an MP4: (x, y) is shown at (a x + c y, b x + d y)."""
    one, content = 1 << 16, path.read_bytes()
    upright, turned = (
        struct.pack(">9i", *(one * v for v in (m[0], m[1], 0, m[2], m[3], 0, 0, 0)), 1 << 30)
        for m in ((1, 0, 0, 1), (a, b, c, d))
    )
    header = content.index(b"tkhd")
    path.write_bytes(content[:header] + content[header:].replace(upright, turned, 1))
    return path


def ways_in(path, size, count=1):
    """Reads the first frames as `--video` does and as training does."""
    return [
        read_video(path, RATE).frames[:count],
        decode_clip(path, 0.0, count, RATE, size),
    ]
