"""The options of `jvdm generate`, and how a record becomes options again."""

import dataclasses
import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jvdm import record as records
from jvdm.errors import ConfigError
from jvdm.pipeline.pictures import Pictures
from jvdm.pipeline.request import Job, Request

_INPUTS = ("image", "last_image", "video")
_RECORDED = ("negative_prompt", "height", "width", "num_frames", "fps", "num_inference_steps")
_RECORDED += ("guidance_scale", "shift")


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """What to make. An option that is left out is the model's default."""

    prompt: str | None = None
    """What is to be seen."""
    negative_prompt: str | None = None
    """What is not to be seen."""
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    num_frames: int | None = None
    """Frames of the video, one more than a multiple of 4."""
    fps: float | None = None
    """Frame rate of the file; it does not change the motion."""
    num_inference_steps: int | None = None
    """Denoising steps."""
    guidance_scale: float | None = None
    """Weight of the prompt; 1 is no guidance."""
    shift: float | None = None
    """Shift of the noise levels towards noise."""
    seed: int | None = None
    """Seed of the first video, the next one has the next seed; drawn and shown if left out."""
    num_videos: int | None = None
    """Videos to make at once."""
    image: Path | None = None
    """Picture that is the first frame."""
    last_image: Path | None = None
    """Picture that is the last frame; needs --image."""
    video: Path | None = None
    """Video whose last frames are continued."""
    prefix_frames: int | None = None
    """Frames of --video that the result begins with; 13 if left out."""
    weights: str | None = None
    """Weights folder, or the name of weights that come with jvdm."""
    solver: str | None = None
    """How a denoising step is made, such as euler or unipc2; an unknown name lists them."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation; what is faster here if left out."""
    output: Path = Path("out")
    """Folder, or the name of the .mp4 file."""
    latents_only: bool = False
    """Stop before decoding; `jvdm decode` goes on from there."""
    like: Path | None = None
    """Record of a video to make again; other options that are given change it."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed per video.

        Raises:
            ConfigError: If there is none.
        """
        count = 1 if self.num_videos is None else self.num_videos
        if count < 1:
            raise ConfigError(f"--num-videos is {count}", "one or more are made", "use 1")
        first = self.seed or 0
        return tuple(range(first, first + count))

    def request(self) -> Request:
        """Returns the request that these options are.

        Raises:
            ConfigError: If there is no prompt.
        """
        if self.prompt is None:
            fix = 'give one: jvdm generate "a large red ball rolls to the left"'
            raise ConfigError("there is no prompt", "", fix)
        return Request(
            prompts=(self.prompt,) * len(self.seeds),
            seeds=self.seeds,
            pictures=Pictures(self.image, self.last_image, self.video, self.prefix_frames),
            **{name: getattr(self, name) for name in _RECORDED},
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Options with nothing left to look up.

    Attributes:
        options: The options; the seed is set.
        only: Which of the videos is written; None is all of them.
        weights: sha256 of the weights that a record asks for, by file.
        notes: What the user should know.
    """

    options: GenerateOptions
    only: int | None = None
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def resolve(options: GenerateOptions) -> Plan:
    """Reads the record that `--like` names, and draws a seed if there is none.

    Raises:
        ConfigError: If the record cannot be read, or a file that it used has changed.
    """
    if options.like is None:
        if options.seed is None:
            options = dataclasses.replace(options, seed=secrets.randbelow(1_000_000))
        return Plan(options)
    record = records.read(options.like)
    settings = dict(record.settings)
    names = [field.name for field in dataclasses.fields(options) if field.name in settings]
    missing = {name: settings[name] for name in names if getattr(options, name) is None}
    for name in _INPUTS:
        if missing.get(name) is not None:
            missing[name] = Path(missing[name])
            _check_unchanged(missing[name], settings["inputs"][name])
    same_batch = {"seed", "num_videos"} <= missing.keys()
    only = settings["index"] if same_batch else None
    same_weights = "weights" in missing
    return Plan(
        dataclasses.replace(options, **missing),
        only,
        record.weights["sha256"] if same_weights else {},
        _differences(record),
    )


def settings_of(options: GenerateOptions, job: Job, index: int) -> dict[str, Any]:
    """Returns what the record of video `index` needs to make it again."""
    settings = dataclasses.asdict(job.settings)
    inputs = {name: getattr(options, name) for name in _INPUTS}
    return {
        "prompt": options.prompt,
        "seed": options.seed,
        "num_videos": len(options.seeds),
        "index": index,
        **{name: settings[name] for name in _RECORDED},
        **{name: None if path is None else str(path) for name, path in inputs.items()},
        "prefix_frames": options.prefix_frames,
        "inputs": {name: _digest(path) for name, path in inputs.items() if path is not None},
        "weights": options.weights,
        "solver": options.solver,
        "dtype": options.dtype,
    }


def check_weights(plan: Plan, identity: Mapping[str, str]) -> None:
    """Refuses other weights than those that a record asks for.

    Raises:
        ConfigError: If a file that makes videos differs.
    """
    for name in ("dit.safetensors", "vae.safetensors"):
        if name in plan.weights and plan.weights[name] != identity.get(name):
            raise ConfigError(
                f"{plan.options.like} was made with another {name}",
                f"its sha256 begins with {plan.weights[name][:12]}",
                "name its weights folder with --weights",
            )


def _differences(record: records.Record) -> tuple[str, ...]:
    """Says what may make the result differ in its last bits."""
    now = {"device": records.device()["kind"], "jax": records.versions()["jax"]}
    then = {"device": record.device["kind"], "jax": record.versions["jax"]}
    return tuple(
        f"the record was made with {name} {then[name]}, this is {now[name]}: "
        "rounding may differ, and the file with it"
        for name in now
        if now[name] != then[name]
    )


def _check_unchanged(path: Path, digest: str) -> None:
    """Raises if a file that a record names is gone or another one now."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist", "the record was made with it", "restore it")
    if _digest(path) != digest:
        what = f"{path} has changed since the record was made"
        raise ConfigError(
            what, f"its sha256 began with {digest[:12]}", "restore it or name another"
        )


def _digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist", "", "give the path of a file")
    return hashlib.sha256(path.read_bytes()).hexdigest()
