"""What a user asks for, checked and completed before anything is computed."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from jvdm import samplers
from jvdm.errors import ConfigError, ShapeError
from jvdm.pipeline.pictures import Canvas, Known, Pictures, place
from jvdm.samplers import TimestepMatrix
from jvdm.text.tokenizer import WordTokenizer
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights import Manifest

MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A generation run as it was asked for; None takes the model's default.

    Attributes:
        prompts: One per video.
        seeds: One per video, 0 to 2**32 - 1.
        negative_prompt: What the videos should not show; None is "no prompt".
        pictures: Images or a clip to start from.
        height: Pixels.
        width: Pixels.
        num_frames: Pixel frames of the result, those of `video` included.
        fps: Frame rate of the result.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt; 1 is no guidance.
        shift: Shift of the noise levels towards noise.
        latents: Starting noise `[B, F, H, W, C]` or `[F, H, W, C]` instead of the seeds'.
        matrix: Timestep matrix instead of the synchronous one.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompt: str | None = None
    pictures: Pictures = Pictures()
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    shift: float | None = None
    latents: Any = None
    matrix: TimestepMatrix | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers and texts of a run, with nothing left open; goes into the record."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompt: str | None
    height: int
    width: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    shift: float


class LatentShape(NamedTuple):
    """Sizes of the latents of a run."""

    batch: int
    frames: int
    height: int
    width: int
    channels: int


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A request that can be run.

    Attributes:
        settings: The settled values.
        tokens: int32 `[2B, L]`: the unconditional prompts, then the prompts.
        matrix: Levels of every latent frame, with known columns frozen.
        known: Frames that are given instead of generated.
        shape: Sizes of the latents.
        noise: Starting noise of `shape`, None for that of the seeds.
        warnings: What the user should know.
    """

    settings: Settings
    tokens: np.ndarray
    matrix: TimestepMatrix
    known: tuple[Known, ...]
    shape: LatentShape
    noise: np.ndarray | None
    warnings: tuple[str, ...]


def prepare(request: Request, manifest: Manifest, patch: int) -> Job:
    """Checks a request and settles what it leaves open.

    Args:
        request: What was asked for.
        manifest: The model's defaults and vocabulary.
        patch: Side of the denoiser's patches in latent cells.

    Raises:
        ConfigError: If a value or a combination cannot be used, or a file not be read.
        ShapeError: If a size does not fit; it names the two nearest that do.
    """
    settings = _settle(request, manifest)
    _check_numbers(settings)
    _check_multiple("height", settings.height, VideoVAE.strides[1] * patch)
    _check_multiple("width", settings.width, VideoVAE.strides[2] * patch)
    size = (settings.height, settings.width)
    shape = LatentShape(
        len(settings.prompts),
        VideoVAE().latent_frames(settings.num_frames),
        *VideoVAE().latent_size(*size),
        len(manifest.latent_mean),
    )
    tokens, unknown = _tokens(settings, manifest)
    canvas = Canvas(shape.batch, settings.num_frames, *size, manifest.defaults.fps)
    known, notes = place(request.pictures, canvas)
    columns = [column for entry in known for column in entry.columns]
    matrix = _matrix(request.matrix, settings, shape.frames)
    matrix = samplers.validate(samplers.freeze(matrix, columns) if columns else matrix)
    warnings = (*unknown, *_beyond_training(settings, manifest), *notes)
    return Job(settings, tokens, matrix, known, shape, _noise(request.latents, shape), warnings)


def _settle(request: Request, manifest: Manifest) -> Settings:
    """Fills in the model's defaults; a matrix brings its own number of steps."""
    values = dataclasses.asdict(manifest.defaults)
    del values["solver"]  # chosen when the model was loaded
    if request.matrix is not None:
        values["num_inference_steps"] = request.matrix.num_rows
    for field in dataclasses.fields(Settings):
        given = getattr(request, field.name)
        if given is not None or field.name not in values:
            values[field.name] = given
    return Settings(**values)


def _check_numbers(settings: Settings) -> None:
    """Refuses values that no model can use."""
    if not settings.prompts or len(settings.prompts) != len(settings.seeds):
        what = f"{len(settings.prompts)} prompts and {len(settings.seeds)} seeds"
        raise ConfigError(what, "each video needs one of both", "give as many seeds as prompts")
    for seed in settings.seeds:
        if not 0 <= seed <= MAX_SEED:
            what = f"the seed is {seed}"
            raise ConfigError(what, f"seeds are 0 to {MAX_SEED}", "choose another")
    if settings.num_inference_steps < 1:
        what = f"num_inference_steps is {settings.num_inference_steps}"
        raise ConfigError(
            what, "one step or more leads from noise to a video", "16 is a good start"
        )
    for name in ("fps", "shift"):
        value = getattr(settings, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}", "it must be a positive number", "leave it out")
    if not math.isfinite(settings.guidance_scale):
        what = f"guidance_scale is {settings.guidance_scale}"
        raise ConfigError(what, "it must be a finite number", "3 is a good start")


def _check_multiple(name: str, value: int, stride: int) -> None:
    """Raises unless a side is a positive multiple of the cells of a patch."""
    if value > 0 and value % stride == 0:
        return
    below = max(value - value % stride, 0)
    nearest = [size for size in (below, below + stride) if size > 0]
    raise ShapeError(
        f"{name} is {value}",
        f"it must be a multiple of {stride}",
        f"use {' or '.join(map(str, nearest))}",
    )


def _tokens(settings: Settings, manifest: Manifest) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the token ids of both branches, and a warning per unknown word."""
    tokenizer = WordTokenizer(manifest.vocabulary)
    texts = [settings.negative_prompt or ""] * len(settings.prompts) + list(settings.prompts)
    ids, unknown = tokenizer.encode_batch(texts)
    words = sorted({word for entry in unknown for word in entry})
    if not words:
        return ids, ()
    named = ", ".join(repr(word) for word in words)
    return ids, (f"the model does not know {named} and reads every such word alike",)


def _beyond_training(settings: Settings, manifest: Manifest) -> tuple[str, ...]:
    """Returns warnings about sizes that the model was not trained on."""
    warnings = []
    if settings.num_frames > manifest.trained_frames:
        warnings.append(
            f"{settings.num_frames} frames are more than the {manifest.trained_frames} of "
            f"training, so motion may repeat or break; use {manifest.trained_frames} and "
            "continue the result with video= (--video)"
        )
    size = (settings.height, settings.width)
    if size not in manifest.trained_sizes:
        trained = ", ".join(f"{height}x{width}" for height, width in manifest.trained_sizes)
        warnings.append(
            f"height x width {size[0]}x{size[1]} was not trained, so pictures may be worse; "
            f"trained: {trained}"
        )
    return tuple(warnings)


def _matrix(
    matrix: TimestepMatrix | None, settings: Settings, latent_frames: int
) -> TimestepMatrix:
    """Returns the matrix that was given, or the synchronous one."""
    if matrix is None:
        levels = samplers.linspace_levels(settings.num_inference_steps)
        return samplers.synchronous(samplers.shift_levels(levels, settings.shift), latent_frames)
    if matrix.latent_frames != latent_frames:
        raise ShapeError(
            f"the timestep matrix has {matrix.latent_frames} latent frames",
            f"{settings.num_frames} frames are {latent_frames} latent frames",
            f"use num_frames={VideoVAE().num_frames(matrix.latent_frames)}",
        )
    return matrix


def _noise(latents: Any, shape: LatentShape) -> np.ndarray | None:
    """Returns the user's starting noise as float32 of the shape of the run."""
    if latents is None:
        return None
    noise = np.asarray(latents, np.float32)
    if noise.ndim == len(shape) - 1:
        noise = np.broadcast_to(noise, shape[:1] + noise.shape)
    if noise.shape != tuple(shape):
        what = f"latents have the shape {noise.shape}"
        raise ShapeError(what, f"this run needs {tuple(shape)}", "leave them out to use the seed")
    return noise
