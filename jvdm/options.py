"""The options of `jvdm generate` and `jvdm stream`, and how a record becomes options again."""

import dataclasses
import os
import secrets
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from jvdm import record as records
from jvdm.errors import ConfigError
from jvdm.files import slug
from jvdm.pipeline import Job, Pipeline, Request, streaming
from jvdm.reading import checked
from jvdm.settings import PICTURE, SIZE, Settings, settings_of
from jvdm.weights.folder import embedded, read_manifest


@dataclasses.dataclass(frozen=True)
class LoadingOptions:
    """What is loaded."""

    weights: str | None = None
    """Weights folder, a file and its text encoder's folder as FILE:FOLDER, or the name of weights
    that come with jvdm."""
    system: str | None = None
    """Published method: one of `configs/systems`, such as wave, or a file with system(base)."""
    sampling: dict[str, str] = dataclasses.field(default_factory=dict)
    """Rules by name: --sampling.solver heun, --sampling.matrix lag --sampling.matrix.lag 4."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation; what is faster here if left out."""
    lora: tuple[str, ...] = ()
    """Low-rank changes of a published network: --lora A.safetensors B.safetensors:0.8."""
    lora_separate: bool = False
    """Keep them beside the weights instead of adding them to these."""
    mesh: str | None = None
    """Devices that share the work: --mesh sequence=4, or auto; one device if left out."""

    @property
    def loading(self) -> dict[str, Any]:
        """What is loaded, by the names of these options, as records have it."""
        names = [field.name for field in dataclasses.fields(LoadingOptions)]
        return {name: getattr(self, name) for name in names}

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as `jvdm.load` takes it."""
        rules = self.loading
        return {"path": rules.pop("weights"), **rules}


@dataclasses.dataclass(frozen=True)
class RunOptions(LoadingOptions, Settings):
    """What to make, and with what. An option that is left out is the model's default."""

    output: Path = Path("out")
    """Folder, or the name of an .mp4, .webm or .gif file."""
    then: dict[str, str] = dataclasses.field(default_factory=dict)
    """Other prompts of a stream, each after its time: --then 20s "a small blue box rests"."""
    like: Path | None = None
    """Record of a video to make again; other options that are given change it."""

    @property
    def seeds(self) -> range:
        """One seed per video.

        Raises:
            ConfigError: If there is none.
        """
        count = 1 if self.num_videos is None else self.num_videos
        if count < 1:
            raise ConfigError(f"--num-videos is {count}", "one or more are made", "use 1")
        first = self.seed or 0
        return range(first, first + count)

    @property
    def name(self) -> str:
        """Stem of the files: the first prompt as a name."""
        return slug(self.prompt or next(iter(self.prompt_at.values()), ""))

    def request(self) -> Request:
        """Returns the request that these options are.

        Raises:
            ConfigError: If there is no prompt.
        """
        if self.prompt is None and not self.prompt_at:
            fix = 'give one: jvdm generate "a large red ball rolls to the left"'
            raise ConfigError("there is no prompt", "", fix)
        asked = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return Request(**asked | {"num_videos": len(self.seeds)})


@dataclasses.dataclass(frozen=True)
class GenerateOptions(RunOptions):
    """What to make. An option that is left out is the model's default."""

    latents_only: bool = False
    """Stop before decoding; `jvdm decode` goes on from there."""
    stream: bool = False
    """Write the video while it is made, until its length or Ctrl-C (`jvdm stream` steers it)."""

    def request(self) -> Request:
        """Returns the request that these options are.

        Raises:
            ConfigError: If there is no prompt, or options contradict each other.
        """
        if self.then and not self.stream:
            why = "a clip has one prompt from its first frame to its last"
            raise ConfigError("--then was given", why, "add --stream, or use --prompt-at")
        if self.stream and self.latents_only:
            why = "the latents of a stream are not kept"
            raise ConfigError("--stream and --latents-only were given", why, "leave one out")
        return super().request()


@dataclasses.dataclass(frozen=True)
class StreamOptions(RunOptions):
    """What to make, for as long as is asked for, and how it is steered."""

    at: dict[str, str] = dataclasses.field(default_factory=dict)
    """Lines at their times, as standard input takes them: --at 20s "rewind 2s"."""
    keep: str | None = None
    """How far one can go back: --keep 8s; the states of so long are held."""
    save: Path | None = None
    """File that holds the session after every chunk, so that nothing can lose it."""
    resume: Path | None = None
    """Saved session to go on with, instead of a prompt."""


def shown_defaults() -> dict[str, str]:
    """Returns what an option is if it is left out, with the shipped weights, for `--help`."""
    manifest = read_manifest(embedded())
    sampling, shown = manifest.rules["sampling"], {"weights": embedded().name, "seed": "drawn"}
    for field in dataclasses.fields(Settings):
        if field.metadata.get("kind") == SIZE:
            shown[field.name] = f"{getattr(manifest.defaults, field.name):g}"
        if field.metadata.get("at"):
            part, number = field.metadata["at"].split(".")
            rule = sampling[part] or {}
            shown[field.name] = f"{rule[number]:g}" if number in rule else "that of the policy"
    return {**shown, "num_videos": "1", "dtype": "float32 on a CPU, else bfloat16"}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Options with nothing left to look up.

    Attributes:
        options: The options; the seed is set.
        only: Which of the videos is written; None is all of them.
        weights: sha256 of the weights that a record asks for, by file.
        notes: What the user should know.
    """

    options: Any
    only: int | None = None
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def resolve(options: RunOptions) -> Resolved:
    """Reads the record that `--like` names, and draws a seed if there is none.

    Raises:
        ConfigError: If the record cannot be read, or a file that it used has changed.
    """
    if options.like is None:
        if options.seed is None:
            options = dataclasses.replace(options, seed=secrets.randbelow(1_000_000))
        return Resolved(options)
    record = records.read(options.like)
    settings, hints = dict(record.settings), typing.get_type_hints(type(options))
    if settings.get("at") and not hasattr(options, "at"):
        what, why = f"{options.like} is of a stream that was steered", "a clip takes no lines"
        raise ConfigError(what, why, f"make it again with jvdm stream --like {options.like}")
    hints |= {"inputs": Mapping[str, str], "index": int}
    settings = {"inputs": {}, "index": 0} | {
        name: checked(hints[name], value, f"settings.{name}", options.like, "take another record")
        for name, value in settings.items()
        if name in hints
    }
    names = [field.name for field in dataclasses.fields(options) if field.name in settings]
    given = {name: getattr(options, name) for name in names}
    missing = {
        name: settings[name]
        for name, value in given.items()
        if (value is None or value is False or value in ({}, ()))
        and not (name == "num_frames" and options.duration is not None)
    }
    for name in missing.keys() & settings["inputs"].keys():
        _check_unchanged(Path(missing[name] or name), settings["inputs"][name])
    videos = settings.get("num_videos") or 1
    if not 0 <= settings["index"] < videos:
        what = f"{options.like} is the record of video {settings['index']} of {videos}"
        raise ConfigError(what, "there is none", "take another record")
    same_batch = {"seed", "num_videos"} <= missing.keys()
    return Resolved(
        dataclasses.replace(options, **missing),
        settings["index"] if same_batch else None,
        record.weights.get("sha256", {}) if "weights" in missing else {},
        _differences(record),
    )


def recorded(options: RunOptions, job: Job, index: int) -> dict[str, Any]:
    """Returns what the record of video `index` needs to make it again."""
    chosen = dataclasses.asdict(job.settings)
    pictures = {name: chosen[name] and str(chosen[name]) for name in settings_of(PICTURE)}
    inputs = dict(job.inputs)
    if options.system is not None and os.path.isfile(options.system):
        inputs["system"] = records.digest(options.system)
    return {
        **chosen,
        **pictures,
        "prompt": options.prompt,
        "seed": options.seed,
        "num_videos": len(options.seeds),
        "index": index,
        "inputs": inputs,
        **options.loading,
    }


@runtime_checkable
class Played(Protocol):
    """What steered a film, by its times, and what was made ahead of it."""

    told: dict[str, str]
    ahead: dict[str, int]


def stream_record(
    options: RunOptions,
    pipe: Pipeline,
    job: streaming.StreamJob,
    played: Played,
    frames: int,
) -> records.Record:
    """Returns the record of a stream of which so many frames are written, as it was played."""
    made, at = streaming.record(pipe, job), played.told
    if played.ahead:
        about = {**made.system["stream"], **played.ahead}
        made = dataclasses.replace(made, system={**made.system, "stream": about})
    settings = {**recorded(options, job.clip, 0), "num_frames": frames}
    settings |= {"stream": True, "then": options.then, "prompt_at": options.prompt_at}
    resume = getattr(options, "resume", None)
    if resume is not None:
        digest = records.digest(resume)
        settings |= {"resume": str(resume), "inputs": {**settings["inputs"], "resume": digest}}
    if at:
        keep = getattr(options, "keep", None)
        settings |= {"at": dict(at), "num_frames": job.num_frames, "keep": keep}
    elif job.num_frames not in (None, frames):
        notes = (*made.warnings, f"the stream was stopped after {frames} frames")
        made = dataclasses.replace(made, warnings=notes, status="interrupted")
    return dataclasses.replace(made, settings=settings)


def check_weights(resolved: Resolved, identity: Mapping[str, str]) -> None:
    """Refuses other weights than those that a record asks for.

    Raises:
        ConfigError: If a file that makes videos differs.
    """
    for name, digest in resolved.weights.items():
        makes_videos = name.endswith(".safetensors") and not name.startswith("reader")
        if makes_videos and digest != identity.get(name):
            raise ConfigError(
                f"{resolved.options.like} was made with another {name}",
                f"its sha256 begins with {digest[:12]}",
                "name its weights folder with --weights",
            )


def _differences(record: records.Record) -> tuple[str, ...]:
    """Says what may make the result differ in its last bits."""
    now = {"device": records.device()["kind"], "jax": records.versions()["jax"]}
    then = {"device": record.device.get("kind"), "jax": record.versions.get("jax")}
    return tuple(
        f"the record was made with {name} {then[name]}, this is {now[name]}: "
        "rounding may differ, and the file with it"
        for name in now
        if now[name] != then[name]
    )


def _check_unchanged(path: Path, digest: str) -> None:
    """Raises if a file that a record names is gone or another one now."""
    if not os.path.isfile(path):
        raise ConfigError(f"{path} does not exist", "the record was made with it", "restore it")
    if records.digest(path) != digest:
        what = f"{path} has changed since the record was made"
        raise ConfigError(
            what, f"its sha256 began with {digest[:12]}", "restore it or name another"
        )
