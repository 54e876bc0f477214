"""Pictures and clips that a run is given: read, cropped, and placed in time."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvdm.arrays import UInt8
from jvdm.errors import ConfigError, ShapeError
from jvdm.vae.video_vae import VideoVAE
from jvdm.video import Video, fit, read_image, read_video

PREFIX_FRAMES = 13  # four latent frames: enough to see how things move, most of a clip stays new
STILL_FRAMES = 9  # a last image is encoded as a short still, because a latent spans 4 frames

_NEED = "a file, or uint8 RGB of the shape {shape}, or one such array per prompt"


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What a run is given to look at.

    Attributes:
        image: First frame: a file or uint8 RGB `[H, W, 3]`, or one per prompt.
        last_image: Last frame, given together with `image`.
        video: Clip whose last frames are continued: a file, a `Video`, or uint8
            RGB `[T, H, W, 3]` at the model's frame rate, or one per prompt.
        prefix_frames: How many frames of `video` the result begins with, at most;
            None is 13.
    """

    image: Any = None
    last_image: Any = None
    video: Any = None
    prefix_frames: int | None = None


class Canvas(NamedTuple):
    """What pictures must fit into; `fps` is the rate that the model was trained at."""

    batch: int
    num_frames: int
    height: int
    width: int
    fps: float


class Known(NamedTuple):
    """Pixel frames whose latents are given instead of generated.

    Attributes:
        frames: What is encoded; one entry serves the whole batch.
        columns: Latent frames of the result; they get the last latents of `frames`.
    """

    frames: UInt8[np.ndarray, "n T H W 3"]
    columns: tuple[int, ...]


def place(pictures: Pictures, canvas: Canvas) -> tuple[tuple[Known, ...], tuple[str, ...]]:
    """Reads pictures and says which latent frames they determine.

    Args:
        pictures: What is given.
        canvas: Sizes of the run.

    Returns:
        The known frames, and notes about pictures that were cropped or resized.

    Raises:
        ConfigError: If pictures exclude each other or cannot be read.
        ShapeError: If no frame would be left to generate.
    """
    _check_combination(pictures, canvas)
    latent_frames = VideoVAE().latent_frames(canvas.num_frames)
    known: list[Known] = []
    notes: list[str] = []
    if pictures.video is not None:
        count = _prefix_length(pictures, canvas)
        clip = _fitted("video", _clip(pictures.video, canvas, count), canvas, notes)
        clip = clip[:, -(1 + (clip.shape[1] - 1) // 4 * 4) :]
        known.append(Known(clip, tuple(range(VideoVAE().latent_frames(clip.shape[1])))))
    if pictures.image is not None:
        frame = _fitted("image", _picture("image", pictures.image, canvas), canvas, notes)
        known.append(Known(frame, (0,)))
    if pictures.last_image is not None:
        frame = _picture("last_image", pictures.last_image, canvas)
        frame = _fitted("last_image", frame, canvas, notes)
        known.append(Known(np.repeat(frame, STILL_FRAMES, axis=1), (latent_frames - 1,)))
    return tuple(known), tuple(notes)


def _check_combination(pictures: Pictures, canvas: Canvas) -> None:
    """Refuses pictures that contradict each other or leave nothing to do."""
    if pictures.video is not None and pictures.image is not None:
        what = "image and video were both given"
        raise ConfigError(what, "both determine the first frame", "leave one of them out")
    if pictures.last_image is not None and pictures.image is None:
        what = "last_image was given without image"
        raise ConfigError(what, "the frames between two pictures are made", "give image as well")
    if pictures.prefix_frames is not None and pictures.video is None:
        what = f"prefix_frames is {pictures.prefix_frames}"
        raise ConfigError(what, "no video was given", "give video, or leave prefix_frames out")
    given = pictures.image is not None, pictures.last_image is not None, pictures.video is not None
    needed = 1 + 4 * sum(given)
    if any(given) and canvas.num_frames < needed:
        what = f"num_frames is {canvas.num_frames}"
        raise ShapeError(what, "every frame would be given", f"use {needed} or more")


def _prefix_length(pictures: Pictures, canvas: Canvas) -> int:
    """Returns how many frames at the end of a video are kept, one more than a multiple of 4."""
    largest = canvas.num_frames - VideoVAE.strides[0]
    wanted = pictures.prefix_frames
    if wanted is None:
        return min(PREFIX_FRAMES, largest)
    if not 1 <= wanted <= largest or (wanted - 1) % VideoVAE.strides[0]:
        raise ShapeError(
            f"prefix_frames is {wanted}",
            f"it must be one more than a multiple of 4 and leave frames of {canvas.num_frames}",
            f"use 1 to {largest}, such as {min(PREFIX_FRAMES, largest)}",
        )
    return wanted


def _clip(video: Any, canvas: Canvas, count: int) -> np.ndarray:
    """Returns the last `count` frames, or fewer, as `[n, T, H, W, 3]`."""
    if isinstance(video, str | Path):
        return read_video(video, canvas.fps, last_frames=count).frames[None]
    if isinstance(video, Video):
        video = video.resampled(canvas.fps).frames
    clips = _checked("video", video, 4, "[T, H, W, 3]", canvas)
    return clips[:, -count:]


def _picture(name: str, image: Any, canvas: Canvas) -> np.ndarray:
    """Returns a picture as a clip of one frame, `[n, 1, H, W, 3]`."""
    if isinstance(image, str | Path):
        image = read_image(image)
    return _checked(name, image, 3, "[H, W, 3]", canvas)[:, None]


def _checked(name: str, value: Any, rank: int, shape: str, canvas: Canvas) -> np.ndarray:
    """Returns uint8 pictures with a leading axis of 1 or of the batch."""
    array = np.asarray(value)
    if array.ndim == rank:
        array = array[None]
    if array.ndim != rank + 1 or array.dtype != np.uint8 or array.shape[-1] != 3 or not array.size:
        what = f"{name} is a {type(value).__name__} ({array.dtype}, shape {np.shape(value)})"
        raise ConfigError(what, f"needed is {_NEED.format(shape=shape)}", "convert it")
    if len(array) not in (1, canvas.batch):
        what = f"{len(array)} pictures were given as {name} for {canvas.batch} prompts"
        raise ConfigError(what, "one serves all, or each prompt has its own", "give 1 or as many")
    return array


def _fitted(name: str, clips: np.ndarray, canvas: Canvas, notes: list[str]) -> np.ndarray:
    """Crops and resizes to the canvas, and notes it."""
    size, wanted = clips.shape[2:4], (canvas.height, canvas.width)
    if size == wanted:
        return clips
    notes.append(
        f"{name} of {size[0]}x{size[1]} (height x width) was cropped in the centre and resized "
        f"to {wanted[0]}x{wanted[1]}"
    )
    return np.stack([fit(clip, *wanted) for clip in clips])
