"""Pictures and clips that a run is given: read, cropped, and placed in time."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvdm import media
from jvdm.arrays import Float, UInt8
from jvdm.errors import ConfigError, ShapeError
from jvdm.settings import END, Settings, seconds_of
from jvdm.video import Fit, Video, fit, read_video

PREFIX_LATENTS = 4  # enough to see how things move, most of a clip stays new
STILL_LATENTS = 3  # a last image is encoded as a short still, because a latent spans frames

_NEED = "a file, pictures of Pillow, or uint8 RGB of the shape {shape}, or one per prompt"


class Canvas(NamedTuple):
    """What pictures must fit into, and how; `fps` is the rate that the model was trained at."""

    vae: Any
    batch: int
    num_frames: int
    height: int
    width: int
    fps: float
    fit: Fit = "crop"


class Told(NamedTuple):
    """Pixel frames that the channel port of a network tells it.

    Attributes:
        frames: What is encoded; one entry serves the whole batch. Bytes, or RGB in 0..1.
        columns: Latent frames of the result whose latents count; those of others stand beside.
    """

    frames: UInt8[np.ndarray, "n T H W 3"] | Float[np.ndarray, "n T H W 3"]
    columns: tuple[int, ...]


class Known(NamedTuple):
    """Pixel frames whose latents are given instead of generated.

    Attributes:
        frames: What is encoded; one entry serves the whole batch.
        columns: Latent frames of the result; they get the last latents of `frames`.
        edited: Whether a run starts from them, noised, instead of keeping them.
    """

    frames: UInt8[np.ndarray, "n T H W 3"]
    columns: tuple[int, ...]
    edited: bool = False


def place(
    given: Settings, canvas: Canvas, edits: bool
) -> tuple[tuple[Known, ...], tuple[str, ...]]:
    """Reads pictures and says which latent frames they determine.

    Args:
        given: What is given: `image`, `last_image`, `video`, `video_at`, `prefix_frames`.
        canvas: Sizes of the run.
        edits: Whether the run starts from a whole video instead of noise.

    Returns:
        The known frames, and notes about what was done to pictures.

    Raises:
        ConfigError: If pictures exclude each other or cannot be read.
        ShapeError: If no frame would be left to generate, or a video to edit is too short.
    """
    _check_combination(given, canvas, edits)
    vae = canvas.vae
    latent_frames = vae.latent_frames(canvas.num_frames)
    known: list[Known] = []
    notes: list[str] = []
    if given.video is not None and given.video_at is not None:
        known.append(_in_time(given, canvas, notes))
    elif given.video is not None:
        count = canvas.num_frames if edits else _prefix_length(given, canvas)
        clip = _clip("video", given.video, canvas, notes, last_frames=count)
        if edits and clip.shape[1] < count:
            what = f"the video to edit has {clip.shape[1]} frames at {canvas.fps:g} per second"
            raise ShapeError(what, f"{count} are made", "use a smaller num_frames")
        stride = vae.strides[0]
        clip = clip[:, -(1 + (clip.shape[1] - 1) // stride * stride) :]
        columns = tuple(range(vae.latent_frames(clip.shape[1])))
        known.append(Known(clip, columns, edits))
    if given.image is not None:
        frame = _picture("image", given.image, canvas, notes)
        known.append(Known(frame, (0,)))
    if given.last_image is not None:
        frame = _picture("last_image", given.last_image, canvas, notes)
        still = np.repeat(frame, vae.num_frames(STILL_LATENTS), axis=1)
        known.append(Known(still, (latent_frames - 1,)))
    _check_room(known, latent_frames)
    return tuple(known), tuple(notes)


def told_of(known: tuple[Known, ...], canvas: Canvas) -> Told:
    """Returns what a network is told of a first and a last picture: a clip that is grey between.

    The models that came before noise levels per frame (Wan image to video) learnt it so.

    Args:
        known: What `place` returned.
        canvas: Sizes of the run.

    Raises:
        ConfigError: If there is no first picture, or a video.
    """
    columns = tuple(column for entry in known for column in entry.columns)
    if not known or columns[0] != 0 or len(columns) != len(known):
        what = f"{len(columns)} latent frames are given" if known else "no image was given"
        why = "this model makes a video of its first picture, or of its first and its last"
        raise ConfigError(what, why, "give image (--image), and perhaps last_image")
    size = (max(len(entry.frames) for entry in known), canvas.num_frames)
    clip = np.full((*size, canvas.height, canvas.width, 3), 0.5, np.float32)
    for place, entry in zip((0, -1), known, strict=False):
        clip[:, place] = entry.frames[:, -1] / np.float32(255.0)
    return Told(clip, columns)


def shown_pictures(
    given: Settings, canvas: Canvas, count: int
) -> tuple[UInt8[np.ndarray, "n H W 3"], ...]:
    """Returns the pictures that a vision encoder is shown, as they were given, not as they fit.

    Args:
        given: `image` and `last_image`.
        canvas: Sizes of the run.
        count: How many the model reads: the first, or the first and the last.

    Raises:
        ConfigError: If there are more or fewer.
    """
    found = {name: getattr(given, name) for name in ("image", "last_image")}
    found = {name: picture for name, picture in found.items() if picture is not None}
    if len(found) != count:
        why = ("", "it reads the first picture alone", "it reads the first and the last picture")
        fix = "give image and last_image" if count == 2 else "give image (--image) alone"
        what = f"{' and '.join(found) or 'no image'} given to a model with a vision encoder"
        raise ConfigError(what, why[count], fix)
    pictures = [_checked(name, value, 3, "[H, W, 3]", canvas, []) for name, value in found.items()]
    most = max(map(len, pictures))
    return tuple(np.broadcast_to(each, (most, *each.shape[1:])) for each in pictures)


def read_channel(channel: Any, canvas: Canvas) -> Told | None:
    """Reads the clip of the channel port: the last frames of a video, or a picture.

    Raises:
        ConfigError: If it cannot be read.
    """
    if channel is None:
        return None
    if isinstance(channel, str | Path) and Path(channel).suffix.lower() in _PICTURES:
        clip = _picture("channel", channel, canvas, [])
    else:
        clip = _clip("channel", channel, canvas, [], last_frames=canvas.num_frames)
    legal = canvas.vae.num_frames(1 + (clip.shape[1] - 1) // canvas.vae.strides[0])
    return Told(clip[:, :legal], tuple(range(canvas.vae.latent_frames(legal))))


_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def _check_combination(given: Settings, canvas: Canvas, edits: bool) -> None:
    """Refuses pictures that contradict each other or leave nothing to do."""
    begins = given.video is not None and given.video_at is None
    if begins and given.image is not None:
        what = "image and video were both given"
        raise ConfigError(what, "both determine the first frame", "leave one of them out")
    if given.last_image is not None and given.image is None:
        what = "last_image was given without image"
        raise ConfigError(what, "the frames between two pictures are made", "give image as well")
    if given.video_at is not None and (given.video is None or edits):
        what = f"video_at is {given.video_at}"
        why = "the whole video is edited" if edits else "no video was given"
        raise ConfigError(what, why, "give video, or leave video_at out")
    if None not in (given.video_at, given.prefix_frames):
        what = f"prefix_frames is {given.prefix_frames} and video_at {given.video_at}"
        raise ConfigError(what, "each says which frames are kept", "leave one of them out")
    if given.prefix_frames is not None and (given.video is None or edits):
        what = f"prefix_frames is {given.prefix_frames}"
        why = "the whole video is edited" if edits else "no video was given"
        raise ConfigError(what, why, "give video, or leave prefix_frames out")
    if edits:
        return
    some = given.image is not None, given.last_image is not None, given.video is not None
    needed = canvas.vae.num_frames(1 + sum(some))
    if any(some) and canvas.num_frames < needed:
        what = f"num_frames is {canvas.num_frames}"
        raise ShapeError(what, "every frame would be given", f"use {needed} or more")


def _in_time(given: Settings, canvas: Canvas, notes: list[str]) -> Known:
    """Returns the last frames of a video that fit into the result from a time on, or to its end.

    Latents of the middle say what changes: they are encoded behind frames of the video that are
    not kept, or behind its first one, standing still.

    Raises:
        ConfigError: If the time is none.
        ShapeError: If it lies behind the frames that are made, or the video is too short.
    """
    vae, stride = canvas.vae, canvas.vae.strides[0]
    begins = [0, *map(vae.num_frames, range(1, vae.latent_frames(canvas.num_frames)))]
    lead, fps, at = vae.num_frames(STILL_LATENTS - 1), given.fps or canvas.fps, given.video_at
    first = 1
    if at != END:
        asked = round(seconds_of("video_at", at, zero=True) * fps)
        if asked >= canvas.num_frames:
            what, why = f"video_at is {at}", f"the result has {canvas.num_frames / fps:.3g} s"
            raise ShapeError(what, why, f"use less, or a longer duration, or {END}")
        first = int(np.argmin(np.abs(np.array(begins) - asked)))
        if begins[first] != asked:
            notes.append(f"video: it begins at {begins[first] / fps:.3g} s, where a latent does")
    room = len(begins) - max(first, 1)  # not all of them
    clip = _clip("video", given.video, canvas, notes, last_frames=lead + stride * room)
    count = clip.shape[1]
    kept = min(room, (count - 1) // stride + 1 if first == 0 else count // stride)
    if kept < 1:
        what = f"the video has {count} frames at {canvas.fps:g} per second"
        raise ShapeError(what, f"{stride} are one latent frame", "give a longer one, or last_image")
    if first == 0:
        return Known(clip[:, -vae.num_frames(kept) :], tuple(range(kept)))
    whole = np.pad(clip, ((0, 0), (lead, 0), (0, 0), (0, 0), (0, 0)), "edge")
    start = len(begins) - kept if at == END else first
    return Known(whole[:, -(lead + stride * kept) :], tuple(range(start, start + kept)))


def _check_room(known: list[Known], latent_frames: int) -> None:
    """Refuses pictures that are of the same frames, or of all."""
    columns = [column for entry in known if not entry.edited for column in entry.columns]
    if len(set(columns)) < len(columns):
        what = f"latent frames {', '.join(map(str, sorted(columns)))} are given"
        raise ConfigError(what, "two say what a frame is", "move video_at, or leave one out")
    if len(columns) == latent_frames:
        what = f"a video of {latent_frames} latent frames"
        raise ShapeError(what, "every frame would be given", "make a longer one (duration)")


def _prefix_length(given: Settings, canvas: Canvas) -> int:
    """Returns how many frames at the end of a video are kept: those of whole latents."""
    stride = canvas.vae.strides[0]
    largest, wanted = canvas.num_frames - stride, given.prefix_frames
    usual = min(canvas.vae.num_frames(PREFIX_LATENTS), largest)
    if wanted is None:
        return usual
    if not 1 <= wanted <= largest or (wanted - 1) % stride:
        raise ShapeError(
            f"prefix_frames is {wanted}",
            f"it must be one more than a multiple of {stride} and leave frames of "
            f"{canvas.num_frames}",
            f"use 1 to {largest}, such as {usual}",
        )
    return wanted


def _clip(
    name: str, video: Any, canvas: Canvas, notes: list[str], last_frames: int
) -> UInt8[np.ndarray, "n T H W 3"]:
    """Returns that many frames at the end, or fewer, at the rate and the size of the canvas."""
    done: list[str] = []
    if isinstance(video, str | Path):
        clips = read_video(video, canvas.fps, last_frames, done).frames[None]
    else:
        clips = _checked(name, video, 4, "[T, H, W, 3]", canvas, done)[:, -last_frames:]
    return _fitted(name, clips, canvas, notes, done)


def _picture(
    name: str, image: Any, canvas: Canvas, notes: list[str]
) -> UInt8[np.ndarray, "n 1 H W 3"]:
    """Returns a picture as a clip of one frame."""
    done: list[str] = []
    clips = _checked(name, image, 3, "[H, W, 3]", canvas, done)[:, None]
    return _fitted(name, clips, canvas, notes, done)


def _checked(
    name: str, value: Any, rank: int, shape: str, canvas: Canvas, done: list[str]
) -> np.ndarray:
    """Returns uint8 pictures with a leading axis of 1 or of the batch."""
    given = np.asarray(_pixels(name, value, canvas.fps, done))
    array = given[None] if given.ndim == rank else given
    if array.ndim != rank + 1 or array.dtype != np.uint8 or array.shape[-1] != 3 or not array.size:
        what = f"{name} is a {type(value).__name__} ({given.dtype}, shape {given.shape})"
        raise ConfigError(what, f"needed is {_NEED.format(shape=shape)}", "convert it")
    if len(array) not in (1, canvas.batch):
        what = f"{len(array)} pictures were given as {name} for {canvas.batch} prompts"
        raise ConfigError(what, "one serves all, or each prompt has its own", "give 1 or as many")
    return array


def _pixels(name: str, value: Any, fps: float, done: list[str]) -> Any:
    """Returns files, pictures of Pillow and videos, also in lists, as arrays; the rest as it is."""
    if isinstance(value, str | Path):
        return media.read_image(value, done)
    if hasattr(value, "getbands"):
        return media.rgb_of(value, done)
    if isinstance(value, Video):
        return value.resampled(fps).frames
    if not isinstance(value, list | tuple):
        return value
    parts = [np.asarray(_pixels(name, part, fps, done)) for part in value]
    if len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(part.shape) for part in parts[:4])
        raise ConfigError(f"the {len(parts)} parts of {name} differ", shapes, "give equal shapes")
    return np.stack(parts) if parts else np.zeros(0)


_FITTED = {
    "crop": "cropped in the centre and resized",
    "pad": "resized and padded with black",
    "stretch": "stretched",
}


def _fitted(
    name: str, clips: np.ndarray, canvas: Canvas, notes: list[str], done: list[str]
) -> np.ndarray:
    """Brings clips to the size of the canvas; notes that and what was done before."""
    notes += [f"{name}: {text}" for text in done]
    size, wanted = clips.shape[2:4], (canvas.height, canvas.width)
    if size == wanted:
        return clips
    notes.append(
        f"{name} of {size[0]}x{size[1]} (height x width) was {_FITTED[canvas.fit]} "
        f"to {wanted[0]}x{wanted[1]}"
    )
    return np.stack([fit(clip, *wanted, how=canvas.fit) for clip in clips])
