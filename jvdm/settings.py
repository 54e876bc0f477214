"""What a user can ask of a run: the one list of settings.

The request, the Python signature of a pipeline, the options of `jvdm generate`, what
`--like` restores and what a record holds are all made from `Settings`: another setting is
one field here, and its use.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from jvdm.errors import ConfigError
from jvdm.system import Sampling

SIZE, RULE, PICTURE, OTHER = "size", "rule", "picture", "other"
"""Kinds: a size of the canvas, a number of a rule of sampling, something to look at, the rest."""


def _setting(kind: str, at: str = "", positive: bool = False) -> Any:
    """A setting that may be left out. `at` says which number of the sampling it is."""
    return dataclasses.field(default=None, metadata={"kind": kind, "at": at, "positive": positive})


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run as it was asked for; what is left out is the model's or the system's."""

    prompt: str | None = None
    """What is to be seen."""
    negative_prompt: str | None = None
    """What is not to be seen."""
    height: int | None = _setting(SIZE)
    """Pixels."""
    width: int | None = _setting(SIZE)
    """Pixels."""
    num_frames: int | None = _setting(SIZE)
    """Frames of the video, those of a given video included."""
    fps: float | None = _setting(SIZE, positive=True)
    """Frame rate of the file; it does not change the motion."""
    num_inference_steps: int | None = _setting(RULE, "levels.num_steps")
    """Denoising steps."""
    guidance_scale: float | None = _setting(RULE, "guidance.scale")
    """Weight of the prompt; 1 is no guidance."""
    shift: float | None = _setting(RULE, "levels.shift", positive=True)
    """Shift of the noise levels towards noise."""
    seed: int | None = None
    """Seed of the first video, the next one has the next seed; drawn and shown if left out."""
    num_videos: int | None = None
    """Videos to make at once."""
    image: Path | None = _setting(PICTURE)
    """Picture that is the first frame."""
    last_image: Path | None = _setting(PICTURE)
    """Picture that is the last frame; needs an image."""
    video: Path | None = _setting(PICTURE)
    """Video whose last frames are continued, or that is edited if the system edits."""
    prefix_frames: int | None = _setting(OTHER)
    """Frames of the video that the result begins with; those of four latents if left out."""
    channel: Path | None = _setting(PICTURE)
    """Video for the channel port of a model that has one."""


def settings_of(*kinds: str) -> tuple[str, ...]:
    """Returns the names of the settings of these kinds, in order."""
    fields = dataclasses.fields(Settings)
    return tuple(field.name for field in fields if field.metadata.get("kind") in kinds)


def check_numbers(settings: Settings) -> None:
    """Refuses numbers that no model can use.

    Raises:
        ConfigError: It names the setting and its value.
    """
    if settings.num_inference_steps is not None and settings.num_inference_steps < 1:
        what = f"num_inference_steps is {settings.num_inference_steps}"
        why = "one step or more leads from noise to a video"
        raise ConfigError(what, why, "16 is a good start")
    for field in dataclasses.fields(Settings):
        value, positive = getattr(settings, field.name), field.metadata.get("positive")
        if value is None or not (positive or field.metadata.get("at")):
            continue
        if not math.isfinite(value) or positive and value <= 0:
            needed = "a positive number" if positive else "a finite number"
            raise ConfigError(f"{field.name} is {value}", f"it must be {needed}", "leave it out")


def with_numbers(sampling: Sampling, settings: Settings) -> Sampling:
    """Returns the sampling with the numbers that a run was asked for.

    Raises:
        ConfigError: If a rule has no such number.
    """
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if value is None or not field.metadata.get("at"):
            continue
        part, number = field.metadata["at"].split(".")
        rule = getattr(sampling, part)
        if not hasattr(rule, number):
            why = f"the {part} of this system is {type(rule).__name__}, which has no {number}"
            fix = f"leave it out, or choose another {part} with --sampling.{part}"
            if rule is None:
                why, fix = "the matrix that was given says it already", "leave one of them out"
            raise ConfigError(f"{field.name} is {value}", why, fix)
        rule = dataclasses.replace(rule, **{number: value})
        sampling = dataclasses.replace(sampling, **{part: rule})
    return sampling


def settled(settings: Settings, sampling: Sampling, sizes: Any) -> Any:
    """Returns the settings with nothing left open that the system or the model knows."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if field.metadata.get("kind") == SIZE and value is None:
            value = getattr(sizes, field.name)
        if field.metadata.get("at"):
            part, number = field.metadata["at"].split(".")
            value = getattr(getattr(sampling, part), number, None)
        found[field.name] = value
    return dataclasses.replace(settings, **found)
