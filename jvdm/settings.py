"""What a user can ask of a run: the one list of settings.

The request, the Python signature of a pipeline, the options of `jvdm generate`, what
`--like` restores and what a record holds are all made from `Settings`: another setting is
one field here, and its use.
"""

import dataclasses
import functools
import itertools
import math
import numbers
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from jvdm.attention import POLICIES
from jvdm.errors import ConfigError
from jvdm.media import check_fps
from jvdm.samplers.modalities import each
from jvdm.system import Sampling
from jvdm.video import Fit

AttentionName = Literal[
    "dense",
    "frame_causal",
    "cached_causal",
    "draft",
    "window",
    "radial",
    "random",
    "oracle",
    "fused_windows",
    "spectral_blend",
]
"""The names of `jvdm.attention.POLICIES`."""
SIZE, RULE, PICTURE, TEXT, OTHER = "size", "rule", "picture", "text", "other"
"""Kinds: a size, a number of a rule of sampling, something to look at, other prompts, the rest."""
END = "end"
"""A time: that of the last frame."""
LEAVE_OUT = "change it, or leave it out"


def _setting(kind: str, at: str = "", positive: bool = False, usual: Any = None) -> Any:
    """A setting that may be left out, which means `usual`.

    `at` says which number of the sampling it is.
    """
    about = {"kind": kind, "at": at, "positive": positive, "usual": usual}
    return dataclasses.field(default=None, metadata=about)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run as it was asked for; what is left out is the model's or the system's."""

    prompt: str | None = None
    """What is to be seen."""
    negative_prompt: str | None = _setting(TEXT)
    """What is not to be seen."""
    switch: dict[str, str] = dataclasses.field(default_factory=dict, metadata={"kind": TEXT})
    """Other prompts within a run: --switch 0.6 "a small blue box rests" from that noise level down,
    or --switch row8."""
    prompt_at: dict[str, str] = dataclasses.field(default_factory=dict, metadata={"kind": TEXT})
    """Prompts of sections: --prompt-at 0s="a large red ball rests" --prompt-at 4s="a small blue box
    rests"; a prompt that is given alone is that of 0s."""
    height: int | None = _setting(SIZE)
    """Pixels."""
    width: int | None = _setting(SIZE)
    """Pixels."""
    num_frames: int | None = _setting(SIZE)
    """Frames of the video, those of a given video included."""
    duration: str | float | None = None
    """Length instead of a number of frames: 5s, 1.5m, or seconds; the next one that is legal."""
    fps: float | None = _setting(SIZE, positive=True)
    """Frame rate of the file; it does not change the motion."""
    num_inference_steps: int | None = _setting(RULE, "levels.num_steps")
    """Denoising steps."""
    guidance_scale: float | None = _setting(RULE, "guidance.scale")
    """Weight of the prompt; 1 is no guidance."""
    guidance_scale_2: float | None = _setting(RULE, "guidance.scale_2")
    """The same at low noise levels, of a system that has another weight there; where
    guidance_scale alone is given, it is that."""
    shift: float | None = _setting(RULE, "levels.shift", positive=True)
    """Shift of the noise levels towards noise."""
    attention: AttentionName | None = _setting(OTHER)
    """Attention policy: who attends to whom."""
    density: float | None = _setting(RULE, "policy.density", positive=True)
    """Share of attention that a sparse policy computes; 1 is dense."""
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
    video_at: str | None = _setting(OTHER)
    """When its last frames are to be seen, instead of at the beginning: 2s, or end; what is before
    and after them is made."""
    invert: int | None = _setting(OTHER)
    """Edit the video from its own noise, which a run backwards finds: refinements of a step."""
    source_prompt: str | None = _setting(TEXT)
    """What is seen in the video that is inverted; nothing if left out."""
    prefix_frames: int | None = _setting(OTHER)
    """Frames of the video that the result begins with; those of four latents if left out."""
    channel: Path | None = _setting(PICTURE)
    """Video for the channel port of a model that has one."""
    fit: Fit | None = _setting(OTHER, usual="crop")
    """How pictures of another shape fit: cut off at both sides, with black beside, or stretched."""


def settings_of(*kinds: str) -> tuple[str, ...]:
    """Returns the names of the settings of these kinds, in order."""
    fields = dataclasses.fields(Settings)
    return tuple(field.name for field in fields if field.metadata.get("kind") in kinds)


def check_numbers(settings: Any) -> Any:
    """Returns the settings with numbers of Python; refuses what no model can use.

    Raises:
        ConfigError: It names the setting and its value.
    """
    found = {}
    for field in dataclasses.fields(Settings):
        value, about = getattr(settings, field.name), field.metadata
        if value is None or field.name in ("prompt", "seed", *settings_of(PICTURE)):
            continue
        if field.name in _READ:
            found[field.name] = _READ[field.name](field.name, value)
            continue
        found[field.name] = value = typed(field.name, value, typing.get_args(field.type)[0])
        if about.get("positive") or about.get("at"):
            needed = "a positive number" if about["positive"] else "a finite number"
            if not math.isfinite(value) or about["positive"] and value <= 0:
                raise ConfigError(f"{field.name} is {value}", f"it must be {needed}", LEAVE_OUT)
    if found.get("num_inference_steps", 1) < 1:
        what = f"num_inference_steps is {found['num_inference_steps']}"
        why = "one step or more leads from noise to a video"
        raise ConfigError(what, why, "16 is a good start")
    check_fps("fps", found.get("fps", 12.0))
    if None not in (settings.duration, settings.num_frames):
        what = f"num_frames is {settings.num_frames} and duration {settings.duration}"
        raise ConfigError(what, "each says how long the video is", "leave one out")
    return dataclasses.replace(settings, **found)


def seconds_of(name: str, time: Any, zero: bool = False) -> float:
    """Returns a time in seconds: a number, or text such as 90, 90s, 1.5m or 1h.

    Raises:
        ConfigError: If it is none, or not above 0 and `zero` is none; it names the setting.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?(s|m|min|h)?", str(time).strip())
    if found is None or isinstance(time, bool) or not zero and float(found[1]) == 0:
        why = f"it is a time {'' if zero else 'above 0 '}in seconds, minutes or hours"
        raise ConfigError(f"{name} is {time!r:.80}", why, "write it as 60s, 1.5m or 1h")
    return float(found[1]) * {"m": 60, "min": 60, "h": 3600}.get(found[2], 1)


def _texts_of(name: str, texts: Any) -> dict[str, str]:
    """Returns texts by what they are told at, which may be numbers, as text too."""
    if not isinstance(texts, Mapping):
        fix = 'write it as {0.6: "a small blue box rests"}'
        raise ConfigError(f"{name} is {texts!r:.80}", "it says prompts by when they are told", fix)
    return {str(when): typed(name, text, str) for when, text in texts.items()}


def _at(name: str, time: Any) -> str:
    """Returns the text of a time of the result, which may be its end."""
    if time != END:
        seconds_of(name, time, zero=True)
    return str(time)


_READ: dict[str, Callable[[str, Any], Any]] = {"duration": seconds_of, "video_at": _at}
_READ |= {"switch": _texts_of, "prompt_at": _texts_of}


def sections_of(settings: Any) -> tuple[tuple[float, Any], ...]:
    """Returns the prompts of sections and the seconds from which they hold, the first from 0.

    Raises:
        ConfigError: If a time is none, they do not ascend, or nothing is told at 0 seconds.
    """
    if not settings.prompt_at:
        return ((0.0, settings.prompt),)
    told = [(seconds_of("prompt_at", at, True), text) for at, text in settings.prompt_at.items()]
    first = [] if settings.prompt is None else [(0.0, settings.prompt)]
    if first and told and told[0][0] == 0:
        why = f"prompt_at says {told[0][1]!r:.80} for 0s too"
        raise ConfigError(f"the prompt is {settings.prompt!r:.80}", why, "leave one of them out")
    sections = (*first, *told)
    if sections[0][0] > 0:
        what = f"prompt_at begins at {sections[0][0]:g} s"
        fix = 'give one for 0s: --prompt-at 0s="a large red ball rests"'
        raise ConfigError(what, "every frame is told one", fix)
    for (before, _), (now, text) in itertools.pairwise(sections):
        if now <= before:
            what = f"prompt_at has {text!r:.80} at {now:g} s, after one at {before:g} s"
            raise ConfigError(what, "sections follow each other", "write them in their order")
    return sections


def typed(name: str, value: Any, kind: Any) -> Any:
    """Returns a value as `int`, `float`, `str` or one of a `Literal`.

    Numbers of NumPy and JAX are numbers; text, truth values and lists are none.

    Raises:
        ConfigError: If it is something else; it names the setting.
    """
    number: Any = value.item() if getattr(value, "ndim", None) == 0 else value
    is_number = issubclass(type(number), numbers.Real) and not isinstance(number, bool)
    if kind is int and is_number and math.isfinite(number) and number == int(number):
        return int(number)
    if kind is float and is_number:
        return float(number)
    if kind is str and isinstance(value, str):
        return value
    choices = typing.get_args(kind)
    if choices and isinstance(value, str) and value in choices:
        return value
    needed = {int: "a whole number", float: "a number", str: "text"}.get(kind)
    what = f"{name} is {value!r:.80}" + ("" if is_number else f" ({type(value).__name__})")
    raise ConfigError(what, f"it must be {needed or ' or '.join(choices)}", LEAVE_OUT)


def with_numbers(sampling: Sampling, settings: Settings) -> Sampling:
    """Returns the sampling with the policy and the numbers that a run was asked for.

    A policy that the system has already stays as it is there.

    Raises:
        ConfigError: If a rule has no such number.
    """
    policy = None if settings.attention is None else POLICIES[settings.attention]
    if policy is not None and type(policy) is not type(sampling.policy):
        sampling = dataclasses.replace(sampling, policy=policy)
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if value is None or not field.metadata.get("at"):
            continue
        part, number = field.metadata["at"].split(".")
        rule = getattr(sampling, part)
        rules = rule.values() if isinstance(rule, Mapping) else (rule,)
        if any(number not in getattr(one, "__dataclass_fields__", ()) for one in rules):
            fixed = [getattr(one, number, None) for one in rules]
            if all(own == value for own in fixed):
                continue
            why = f"the {part} of this system is {type(rule).__name__}, which has no {number}"
            fix = f"leave it out, or choose another {part} with --sampling.{part}"
            if None not in fixed:
                had = " and ".join(map(str, fixed))
                why = f"the {part} of this system are those that its weights were made for: {had}"
                fix = f"use {had}, or choose other {part} with --sampling.{part}"
            if part == "policy":
                why = "the attention of this system has no density"
                fix = "choose a policy that has one: attention='draft' (--attention draft)"
            elif rule is None:
                why, fix = "the matrix that was given says it already", "leave one of them out"
            raise ConfigError(f"{field.name} is {value}", why, fix)
        changes = {number: value}
        if number == "scale" and settings.guidance_scale_2 is None:
            changes["scale_2"] = None  # of rules that have two, it is both
        rule = each(functools.partial(_with, changes), rule)
        sampling = dataclasses.replace(sampling, **{part: rule})
    return sampling


def settled(settings: Settings, sampling: Sampling, sizes: Any) -> Any:
    """Returns the settings with nothing left open that the system or the model knows."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if value is None:
            value = field.metadata.get("usual")
        if field.metadata.get("kind") == SIZE and value is None:
            value = getattr(sizes, field.name)
        if field.metadata.get("at"):
            part, number = field.metadata["at"].split(".")
            rule = getattr(sampling, part)
            value = each(functools.partial(_number, number), rule)
        found[field.name] = value
    return dataclasses.replace(settings, **found)


def _with(changes: Mapping[str, Any], rule: Any) -> Any:
    """Returns a rule with other numbers, of those that it has."""
    mine = {name: value for name, value in changes.items() if hasattr(rule, name)}
    return dataclasses.replace(rule, **mine)


def _number(name: str, rule: Any) -> Any:
    """Returns a number of a rule, None if it has no such number."""
    return getattr(rule, name, None)
