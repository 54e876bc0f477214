"""A request, checked and completed before anything is computed."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm import pricing, prompts
from jvdm import record as records
from jvdm.arrays import Latents
from jvdm.errors import ConfigError, ShapeError
from jvdm.pictures import Canvas, Known, Told, place, read_channel, shown_pictures, told_of
from jvdm.recipes import nearest
from jvdm.rows import follow_motion, keep_given, matrix_of, row_from, starts_noisy
from jvdm.samplers import (
    Denoised,
    Inverted,
    PromptSwitch,
    TimestepMatrix,
    Unguided,
    check_cache,
    check_weights,
    invert,
    reversed_rows,
)
from jvdm.samplers.matrices import level_at
from jvdm.samplers.modalities import each
from jvdm.samplers.sampler import shared_rows
from jvdm.settings import (
    LEAVE_OUT,
    OTHER,
    PICTURE,
    RULE,
    SIZE,
    TEXT,
    Settings,
    check_numbers,
    seconds_of,
    sections_of,
    settings_of,
    settled,
    with_numbers,
)
from jvdm.system import System, rules_of
from jvdm.weights import Manifest

BY_NAME = ("matrix", "latents", "given")
"""What each of several modalities has: dicts by name (`jvdm.pipeline.together`)."""


class Given(NamedTuple):
    """Standardised latents that are given, `[B, n, H, W, C]`, and the frames that they are."""

    latents: Latents
    columns: tuple[int, ...]


@typing.no_type_check
@dataclasses.dataclass(frozen=True, eq=False)
class Request(Settings):
    """A run as it was asked for from Python, where prompts and seeds may be several.

    `prompt` is text or a sequence of texts, `seed` a number or one per video; pictures may be
    arrays (`jvdm.pictures`).

    Attributes:
        latents: Starting noise `[B, F, H, W, C]` or `[F, H, W, C]` instead of the seeds'.
        matrix: Timestep matrix instead of the system's.
        given: Latent frames that are known already.
    """

    latents: Any = None
    matrix: TimestepMatrix | Mapping[str, TimestepMatrix] | None = None
    given: tuple[Given, ...] | Mapping[str, tuple[Given, ...]] = ()

    if typing.TYPE_CHECKING:

        def __init__(self, **settings: Any) -> None: ...


def request_of(**settings: Any) -> Request:
    """Returns the request with these settings.

    Raises:
        ConfigError: If there is no setting of a name; it says which was probably meant.
    """
    known = {field.name for field in dataclasses.fields(Request)}
    for name in settings:
        if name not in known:
            fix = nearest(name, known)
            raise ConfigError(f"{name} was given", "there is no such setting", fix)
    return Request(**settings)


def signature_of(call: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of a method with `**settings`, in which every one has its name."""
    own = inspect.signature(call)
    kept = [item for item in own.parameters.values() if item.kind is not item.VAR_KEYWORD]
    names = {item.name for item in kept}
    usual = Request()
    settings = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(usual, name))
        for name in (field.name for field in dataclasses.fields(Request))
        if name not in names
    ]
    return own.replace(parameters=[*kept, *settings])


class LatentShape(NamedTuple):
    """Sizes of the latents of a run."""

    batch: int
    frames: int
    height: int
    width: int
    channels: int


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A request that can be run; of several modalities, matrix, given, shape and noise are dicts.

    Attributes:
        settings: The settled values; prompt, seed and pictures are left as they were given.
        prompts: One per video.
        seeds: One per video.
        system: The system, with the numbers of the request in it.
        ids: What the text encoder reads: prompts of all guidance branches, branch-major.
        switch: The rows from which other prompts are told.
        later: `ids` of these prompts.
        sections: First latent frames of later sections of the clip, and `ids` of their prompts.
        inversion: The run that finds the noise of the video that is edited, if any.
        matrix: Levels of every latent frame, with known columns frozen.
        known: Frames that are given instead of generated, or that are edited.
        given: Latents that are given.
        channel: What the channel port tells, None for nothing.
        pictures: What the vision encoder reads, `[n, K, h, w, 3]` for `K` pictures a video and
            one video or each; None for nothing.
        shape: Sizes of the latents.
        noise: Starting noise of `shape`, None for that of the seeds.
        inputs: sha256 of every picture and of the starting noise, by setting.
        warnings: What the user should know.
    """

    settings: Any
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    system: System
    ids: Any
    switch: PromptSwitch
    later: tuple[Any, ...]
    sections: tuple[tuple[int, Any], ...]
    inversion: "Job | None"
    matrix: Any
    known: tuple[Known, ...]
    given: Any
    channel: Told | None
    pictures: np.ndarray | None
    shape: Any
    noise: Any
    inputs: Mapping[str, str]
    warnings: tuple[str, ...]

    def recorded(self) -> dict[str, Any]:
        """Returns the texts and numbers of the run, for its record."""
        names = settings_of(TEXT, SIZE, RULE, OTHER)
        values = {name: getattr(self.settings, name) for name in names}
        inputs = dict(self.inputs)
        if arrays := [entry.latents for entry in jax.tree.leaves(self.given, is_leaf=_is_given)]:
            inputs["given"] = records.digest(*arrays)
        return {"prompts": self.prompts, "seeds": self.seeds, **values, "inputs": inputs}

    @property
    def batch(self) -> int:
        """Number of videos."""
        return len(self.prompts)

    @property
    def inverts(self) -> bool:
        """Whether the run goes from a clip to its noise."""
        return isinstance(self.system.sampling.solver, Inverted)

    def system_recorded(self) -> dict[str, Any]:
        """Returns process, prediction, sampling and matrix of the run, for its record."""
        try:
            rules = rules_of(self.system)
        except ConfigError:  # as text what is no JSON
            rules = {"process": repr(self.system.process), "sampling": repr(self.system.sampling)}
        window = each(lambda matrix: matrix.window, self.matrix)
        sizes = {"rows": shared_rows(self.matrix), "window": window}
        digest = records.digest(*jax.tree.leaves(self.matrix))
        return {**rules, "matrix": {**sizes, "sha256": digest}}


def prepare(request: Request, system: System, manifest: Manifest, devices: int = 1) -> Job:
    """Checks a request and settles what it leaves open.

    Args:
        request: What was asked for.
        system: The system that is to make it.
        manifest: Sizes that its model was trained on.
        devices: Devices over which the videos are split.

    Raises:
        ConfigError: If a value or a combination cannot be used, or a file not be read.
        ShapeError: If a size does not fit; it names the two nearest that do.
        DeviceMemoryError: If it cannot be held; it names the largest that can.
    """
    if named := [name for name in BY_NAME if isinstance(getattr(request, name), Mapping)]:
        why = "this system makes one video, and no modalities by name"
        raise ConfigError(f"{named[0]} is a dict", why, "give the value alone")
    request = with_frames(check_numbers(request), system, manifest)
    (_, first_told), *told = sections_of(request)
    request = dataclasses.replace(request, prompt=first_told)
    sampling, asked = system.sampling, typing.cast(TimestepMatrix | None, request.matrix)
    if asked is not None:  # it says all levels: no rule of the system has a say
        sampling = dataclasses.replace(sampling, levels=None, matrix=None)
    sampling = with_numbers(sampling, request)
    settings = settled(request, sampling, manifest.defaults)
    guidance = sampling.guidance.settled()
    system = dataclasses.replace(system, sampling=dataclasses.replace(sampling, guidance=guidance))
    if asked is not None:
        settings = dataclasses.replace(settings, num_inference_steps=asked.num_steps)

    size = (settings.num_frames, settings.height, settings.width)
    shape = latent_shape(system, settings, prompts.count(request.prompt, request.num_videos))
    system = _sized(system, settings, shape)
    matrix = matrix_of(asked, system, settings, shape.frames)
    estimate = pricing.check(system, pricing.Size(shape.batch, *size), matrix, devices)
    texts, seeds = prompts.batch(request.prompt, request.seed, request.num_videos)
    ids, unknown = read(system, texts, settings)
    sections, strange = _sections(system, settings, told, len(texts))
    canvas = Canvas(system.vae, shape.batch, *size, manifest.defaults.fps, settings.fit)
    noisy = starts_noisy(matrix, system.process)
    known, notes = place(request, canvas, edits=_edits(request, noisy, matrix))
    channel = read_channel(request.channel, canvas)
    if getattr(system.model, "told_pictures", False):
        known, channel = (), told_of(known, canvas)
    matrix = follow_motion(keep_given(matrix, noisy, (*known, *request.given)), known, system)
    given = {name: getattr(request, name) for name in (*settings_of(PICTURE), "latents")}
    seen = system.seen(matrix.window, shape.height, shape.width)
    large = _beyond_training(settings, manifest, seen[0] < matrix.window)
    _check_policy(system.network, *seen)
    check_cache(matrix, system.network.policy.slots, system.network.policy.banks)
    check_weights(guidance, matrix)
    rows = sorted((row_from(when, matrix), text) for when, text in settings.switch.items())
    job = Job(
        settings=settings,
        prompts=texts,
        seeds=seeds,
        system=system,
        ids=ids,
        switch=PromptSwitch(tuple(row for row, _ in rows)),
        later=tuple(read(system, (text,) * len(texts), settings)[0] for _, text in rows),
        sections=sections,
        inversion=None,
        matrix=matrix,
        known=known,
        given=request.given,
        channel=channel,
        pictures=_seen(system, request, canvas),
        shape=shape,
        noise=noise_of(request.latents, shape),
        inputs={name: records.digest(x) for name, x in given.items() if x is not None},
        warnings=(*unknown, *strange, *large, *notes, *estimate),
    )
    return job if request.invert is None else dataclasses.replace(job, inversion=_inverse(job))


def read(system: System, texts: tuple[str, ...], settings: Settings) -> tuple[Any, Any]:
    """Returns what the text encoder reads of the prompts of all branches, and unknown words."""
    texts = prompts.of_branches(system.branches, texts, settings.negative_prompt)
    return system.text.read(texts)


def _sections(
    system: System, settings: Any, told: Sequence[tuple[float, str]], videos: int
) -> tuple[tuple[tuple[int, Any], ...], tuple[str, ...]]:
    """Returns the later sections of a clip, and what the text encoder could not read of them.

    A latent frame is told the prompt that holds at the first of its frames, as a chunk of a stream.

    Raises:
        ConfigError: If the network cannot be told them, or a section has no latent frame.
    """
    if not told:
        return (), ()
    if settings.switch:
        what, why = "prompt_at and switch were given", "each says what the prompt becomes"
        raise ConfigError(what, why, "leave one of them out")
    if not getattr(system.model, "reads_sections", False):
        why = f"all frames of a {type(system.model).__name__} are told one prompt"
        raise ConfigError("prompt_at was given", why, "use switch, or stream it: jvdm stream")
    vae, fps = system.vae, settings.fps
    begins = [0, *map(vae.num_frames, range(1, vae.latent_frames(settings.num_frames)))]
    sections, notes, last = [], [], 0
    for seconds, text in told:
        first = int(np.searchsorted(begins, round(seconds * fps)))
        what = f"prompt_at has {text!r:.80} at {seconds:g} s"
        if first == len(begins):
            why = f"the last frames that are made together begin at {begins[-1] / fps:.3g} s"
            raise ConfigError(what, why, "make a longer clip, or let the section begin earlier")
        if first == last:
            why = f"the section before it, or itself, has no frames: {vae.strides[0]} go together"
            raise ConfigError(what, why, f"use times {vae.strides[0] / fps:.3g} s apart or more")
        ids, unknown = read(system, (text,) * videos, settings)
        sections, notes, last = [*sections, (first, ids)], [*notes, *unknown], first
    return tuple(sections), tuple(notes)


def _is_given(part: Any) -> bool:
    return isinstance(part, Given)


def _seen(system: System, request: Request, canvas: Canvas) -> np.ndarray | None:
    """Returns what the vision encoder reads of the pictures, None where there is none."""
    if system.vision is None:
        return None
    shown = shown_pictures(request, canvas, system.model.reads_pictures)
    return np.stack([system.vision.read(picture) for picture in shown], 1)


def _edits(request: Request, noisy: np.ndarray, matrix: TimestepMatrix) -> bool:
    """Returns whether a run starts from a whole video: at its levels, or at its own noise."""
    if request.invert is None:
        if request.source_prompt is not None:
            what, why = f"source_prompt is {request.source_prompt!r:.80}", "no video is inverted"
            raise ConfigError(what, why, "give invert (--invert 2) and video, or leave it out")
        first = np.asarray(level_at(matrix, matrix.index[0]))
        return bool((~noisy & (first > 0)).any())
    if request.invert < 0:
        fix = "use 0 for one evaluation a step, or 2 to come nearer"
        raise ConfigError(f"invert is {request.invert}", "it counts refinements of a step", fix)
    if request.video is None or request.latents is not None:
        why = "no video was given" if request.video is None else "latents say the noise already"
        raise ConfigError(f"invert is {request.invert}", why, "give video, and no latents")
    return True


def _inverse(job: Job) -> Job:
    """Returns the run that finds the noise of the video that a job edits.

    It is the job's, backwards, without guidance and hooks, told `source_prompt`.

    Raises:
        ConfigError: If its solver or its matrix has no way back.
    """
    sampling, matrix = job.system.sampling, job.matrix
    if matrix.lookback:
        why = "its rows read frames from a cache, which a run backwards has not made"
        raise ConfigError("a video is inverted with a cached matrix", why, "choose another matrix")
    solver = Inverted(sampling.solver, job.settings.invert)
    x = jnp.zeros((1, matrix.latent_frames, 1))
    jax.eval_shape(lambda x: invert(_nothing, sampling.solver, job.system.process, matrix, x), x)
    rules = dataclasses.replace(sampling, solver=solver, guidance=Unguided(), hooks=())
    system = dataclasses.replace(job.system, sampling=rules)
    texts = (job.settings.source_prompt or "",) * job.shape.batch
    return dataclasses.replace(
        job,
        prompts=texts,
        system=system,
        ids=read(system, texts, job.settings)[0],
        switch=PromptSwitch(()),
        later=(),
        sections=(),
        matrix=reversed_rows(matrix),
    )


def _nothing(x: Any, call: Any, carry: Any) -> tuple[Denoised, Any]:
    """A network that costs nothing, to try a solver with."""
    return Denoised(x, x), carry


def scheduled(request: Request, then: Mapping[Any, str]) -> tuple[Request, str, dict[float, str]]:
    """Returns a request with the first of its sections, and what says the others, by seconds."""
    if not request.prompt_at:
        later = [(seconds_of("then", time), prompt) for time, prompt in then.items()]
        if len(dict(later)) < len(later):
            what, why = f"then has the times {', '.join(map(str, then))}", "two are the same"
            raise ConfigError(what, why, "leave one of them out")
        return request, "then", dict(later)
    if then:
        what, why = "then and prompt_at were given", "each says what is told later"
        raise ConfigError(what, why, "leave one of them out")
    (_, first), *later = sections_of(request)
    return dataclasses.replace(request, prompt=first, prompt_at={}), "prompt_at", dict(later)


def frames_of(request: Request, manifest: Manifest) -> int | None:
    """Returns how many frames were asked for, by a number or by a duration in seconds."""
    if request.duration is None:
        return request.num_frames
    return max(1, round(float(request.duration) * (request.fps or manifest.defaults.fps)))


def with_frames(request: Request, system: System, manifest: Manifest) -> Request:
    """Returns the request with the legal number of frames that last as long as was asked for."""
    frames, vae = frames_of(request, manifest), system.vae
    if request.duration is None or frames is None:
        return request
    latents = 1 + -(-(frames - 1) // vae.strides[0])
    return dataclasses.replace(request, num_frames=vae.num_frames(latents), duration=None)


@functools.lru_cache(maxsize=256)
def _check_policy(network: Any, window: int, height: int, width: int) -> None:
    """Lets the attention policy refuse sizes that it cannot run on."""
    jax.eval_shape(lambda: network.start(window, height, width))


def latent_shape(system: System, settings: Any, batch: int) -> LatentShape:
    """Returns the sizes of the latents; the autoencoder and the patches say which fit."""
    vae, size = system.vae, (settings.height, settings.width)
    for name, value, stride in zip(("height", "width"), size, vae.strides[1:], strict=True):
        _check_multiple(name, value, stride * system.model.patch)
    frames, (rows, columns) = vae.latent_frames(settings.num_frames), vae.latent_size(*size)
    return LatentShape(batch, frames, rows, columns, vae.latent_channels)


def _sized(system: System, settings: Any, shape: LatentShape) -> System:
    """Returns the system with what depends on the size and the frame rate of the video."""
    rules = system.sampling
    if hasattr(rules.levels, "tokens"):
        tokens = shape.frames * shape.height * shape.width // system.model.patch**2
        levels = dataclasses.replace(rules.levels, tokens=tokens)  # pyright: ignore
        system = dataclasses.replace(system, sampling=dataclasses.replace(rules, levels=levels))
    if hasattr(system.model, "fps"):  # it places tokens in seconds
        model = system.model.clone(fps=float(settings.fps))
        system = dataclasses.replace(system, model=model)
    return system


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


def _beyond_training(settings: Any, manifest: Manifest, in_tiles: bool) -> tuple[str, ...]:
    """Returns warnings about sizes that the model was not trained on."""
    warnings = []
    if settings.num_frames > manifest.trained_frames and not in_tiles:
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


def noise_of(latents: Any, shape: LatentShape) -> np.ndarray | None:
    """Returns the user's starting noise as float32 of the shape of the run."""
    if latents is None:
        return None
    try:
        noise = np.asarray(latents, np.float32)
    except (TypeError, ValueError) as error:
        what = f"latents are a {type(latents).__name__}"
        raise ConfigError(what, f"they cannot be read as numbers ({error})", LEAVE_OUT) from error
    if noise.ndim == len(shape) - 1:
        noise = np.broadcast_to(noise, shape[:1] + noise.shape)
    if noise.shape != tuple(shape):
        what = f"latents have the shape {noise.shape}"
        raise ShapeError(what, f"this run needs {tuple(shape)}", "leave them out to use the seed")
    return noise
