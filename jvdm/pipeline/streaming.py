"""Streams: a video without an end, decoded piece by piece as its frames are finished.

An ordinary run of the system makes the first clip, whose latent frames are then noised to the
levels of a rolling window (`jvdm.samplers.stream`). Every chunk finishes the next block of them,
and the autoencoder goes on where it was. So given pictures begin a stream as they begin a clip,
and neither memory nor the time of a chunk grows. A stream is a value: who keeps an old one can go
back to it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jvdm import pricing, prompts, samplers
from jvdm import record as records
from jvdm.arrays import Array, Latents, PyTree, UInt8
from jvdm.callbacks import Callback
from jvdm.errors import ConfigError
from jvdm.models.conditions import Conditions
from jvdm.parallel.mesh import description_of, parts
from jvdm.pipeline import programs
from jvdm.pipeline.request import Job, Request, frames_of, read, scheduled
from jvdm.samplers import StreamRows, StreamState, SynchronousMatrix
from jvdm.samplers.stream import out_of_range
from jvdm.settings import PICTURE, check_numbers, seconds_of, settings_of, with_numbers
from jvdm.stages import stage
from jvdm.system import OF_A_ROW

if TYPE_CHECKING:
    from jvdm.pipeline.foresight import Foresight
    from jvdm.pipeline.pipeline import Pipeline

HostFrames = UInt8[np.ndarray, "T height width 3"]
Shown = tuple[Latents, Array, Array]
"""Of a chunk on the device: latents, frames `[B, T, h, w, 3]`, and whether these are finite."""


class Telling(NamedTuple):
    """What the network is told from a frame on.

    Attributes:
        frame: The first frame whose chunk is made with it.
        conditions: What the network is told.
        prompt: The prompt that this is.
        action: What is done while its frames come to be, where the network is told so.
    """

    frame: int
    conditions: Conditions
    prompt: str
    action: str | None = None


class Prompted(NamedTuple):
    """A prompt from a frame on, and what the text encoder reads of it."""

    frame: int
    prompt: str
    ids: Any


@dataclasses.dataclass(frozen=True, eq=False)
class StreamJob:
    """A stream that can be run.

    Attributes:
        clip: The run that makes the first clip.
        rows: The rows of the stream.
        told: What is told from which frame on, in order; the first from frame 0.
        num_frames: Frames of the video; None is without an end.
        held: Bytes that it holds between two chunks.
        kept: Chunks whose states are kept, to go back to them.
        ahead: Chunks that are made at most before anybody says what is told with them, while
            others are shown (`Foresight`).
    """

    clip: Job
    rows: StreamRows
    told: tuple[Prompted, ...]
    num_frames: int | None
    held: pricing.Held
    kept: int = 0
    ahead: int = 0

    @property
    def last_begin(self) -> int | None:
        """Frames before the last chunk; None is without an end."""
        if self.num_frames is None:
            return None
        return chunk_begin(self.clip, self.rows, self.num_frames - 1, within=True)


class Stream(NamedTuple):
    """A stream between two chunks.

    Attributes:
        told: What is told now, and what will be, in the order of their frames.
        state: The rolling window.
        decoder: What the autoencoder remembers; None before the first frame.
        ready: Latents that are finished and were not handed out, if any.
        frames: Frames that were handed out.
        began: Frames that were handed out before the last chunk; -1 before the first.
        latest: Latest finished latents, where another prompt writes them to the cache again; of a
            young stream, those that are missing are zeros before them.
        rest: Frames of the last chunk that lie behind the end of the video, if any: a longer one
            goes on with them.
    """

    told: tuple[Telling, ...]
    state: StreamState
    decoder: PyTree
    ready: Latents | None
    frames: int
    began: int = -1
    latest: Latents | None = None
    rest: HostFrames | None = None


def prepare_stream(
    pipe: "Pipeline", request: Request, then: Mapping[Any, str], keep: str | float | None = None
) -> StreamJob:
    """Checks what was asked for; computes nothing.

    Args:
        pipe: The loaded system.
        request: What was asked for; its number of frames, or duration, is that of the video.
        then: Other prompts by the time from which they are told.
        keep: For how long states are kept to go back to, as "8s"; None keeps none.

    Raises:
        ConfigError: If a value cannot be used, or the system cannot go on for ever.
        DeviceMemoryError: If it cannot be held; it names the largest that can.
    """
    if pipe.mesh is not None and parts(pipe.mesh) > 1:
        what, why = f"the mesh {description_of(pipe.mesh)} splits videos", "a stream is one video"
        raise ConfigError(what, why, "split its tokens: --mesh sequence")
    request, sampling = check_numbers(request), pipe.system.sampling
    request, name, later = scheduled(request, then)
    if request.matrix is not None:
        fix = "choose how to go on with sampling={'matrix': 'lag'}"
        raise ConfigError("a timestep matrix was given", "it is made for one clip", fix)
    levels: Any = with_numbers(sampling, request).levels
    window = pipe.system.vae.latents_of_prefix(pipe.manifest.trained_frames)
    rows = samplers.stream_of(sampling.matrix, levels(), window)
    if keeps(rows) and any(getattr(request, name) is not None for name in settings_of(PICTURE)):
        why = "its cache of keys and values is filled from the first frame on, by itself"
        raise ConfigError("a stream with a cache was given a picture", why, "leave one out")
    by_level = getattr(sampling.matrix, "by_level", False)
    matrix = sampling.matrix if by_level else SynchronousMatrix()
    system = dataclasses.replace(pipe.system, sampling=dataclasses.replace(sampling, matrix=matrix))
    frames, last = system.vae.num_frames(rows.buffer), frames_of(request, pipe.manifest)
    asked = dataclasses.replace(request, num_frames=frames, duration=None)
    clip = dataclasses.replace(pipe, system=system).prepare(asked)
    _check(clip, rows, last)
    _check_policy(sampling.matrix, clip.system.network.policy, clip.matrix.num_rows)
    size = pricing.Size(1, frames, clip.settings.height, clip.settings.width)
    kept = 0 if keep is None else seconds_of("keep", keep) * clip.settings.fps
    kept = math.ceil(kept / (system.vae.strides[0] * rows.block))
    ahead = _ahead(sampling.matrix, rows)
    held = pricing.check_stream(clip.system, size, clip.matrix, kept + ahead)
    held = held._replace(window=held.window + 4 * rows.rewrite * math.prod(clip.shape[2:]))
    if isinstance(sampling.matrix, SynchronousMatrix):
        note = f"its frames go together; the stream is a wave of lag {rows.cycle.num_rows}"
        clip = dataclasses.replace(clip, warnings=(*clip.warnings, note))
    told, unknown = _told(clip, rows, last, name, later)
    clip = dataclasses.replace(clip, warnings=(*clip.warnings, *unknown))
    return StreamJob(clip, rows, told, last, held, kept, ahead)


def _ahead(matrix: Any, rows: StreamRows) -> int:
    """Returns how many chunks are made ahead of what is told."""
    ahead = getattr(matrix, "ahead", 0)
    if ahead < 0 or ahead and _retells(rows):
        what = f"{ahead} chunks of a stream are to be made ahead"
        why = "there are 0 or more, and none where another prompt changes what a cache holds"
        raise ConfigError(what, why, "use --sampling.matrix.ahead 0")
    return ahead


def _check(clip: Job, rows: StreamRows, last: int | None) -> None:
    """Refuses what makes clips only."""
    sampling, policy, alone = clip.system.sampling, clip.system.network.policy, "of one clip"
    reasons = {
        f"{clip.shape.batch} videos": ("a stream is one video", clip.shape.batch > 1),
        "hooks": (f"they count the rows {alone}", bool(sampling.hooks)),
        "switch": (f"it counts the rows {alone}; then (--then 20s) tells a stream", clip.later),
        "invert": ("it edits a clip", clip.inversion is not None),
        f"the noise {sampling.noise}": (f"it is {alone}", sampling.noise is not None),
        f"the autoencoder {type(clip.system.vae).__name__}": (
            "it decodes whole videos only",
            not hasattr(clip.system.vae, "decode_chunk"),
        ),
        f"a cache that the policy {type(policy).__name__} does not keep": (
            "later chunks read earlier ones from it: --sampling.policy cached_causal keeps one",
            keeps(rows) and policy.slots(np.zeros(1, int))[0] < 0,
        ),
        f"actions and {rows.buffer} latent frames in work": (
            f"an action is that of a chunk, which has {rows.block}: --system nfd has no others",
            bool(actions_of(clip.system)) and rows.buffer != rows.block,
        ),
        "a clip for the channel port": ("it says what is in one clip", clip.channel is not None),
        f"num_frames {last}": ("a video has one frame or more", last is not None and last < 1),
    }
    for what, (why, holds) in reasons.items():
        if holds:
            raise ConfigError(f"a stream with {what}", why, "leave it out")


def _check_policy(matrix: Any, policy: Any, num_rows: int) -> None:
    """Refuses attention by the rows of a clip, and a cache that is shorter than what is read."""
    phases, given = dict(policy.phases(num_rows)), type(policy).__name__
    if phases.keys() == {"dense", "sparse"}:
        what, why = f"a stream with the policy {given} with dense rows", "they are the first"
        fix = "leave them out (--sampling.policy.dense_rows 0); dense_above says it by noise level"
        raise ConfigError(what, f"{why} of one clip", fix)
    if len(phases) > 1:
        why = f"its rows are those of one clip: {', '.join(phases)}; those of a stream repeat"
        fix = "choose another, as --sampling.policy dense, or make a clip"
        raise ConfigError(f"a stream with the policy {given}", why, fix)
    read = getattr(matrix, "lookback", None) or 0
    held = int(np.asarray(policy.slots(np.arange(2 * read + 1))).max()) + 1
    if held < read:
        what = f"a stream reads the latest {read} latent frames from a cache"
        why = f"that of this attention policy holds {held}"
        fix = f"choose a smaller lookback, or --sampling.policy.frames {read}"
        raise ConfigError(what, why, fix)


def _told(
    clip: Job, rows: StreamRows, last: int | None, name: str, later: Mapping[float, str]
) -> tuple[tuple[Prompted, ...], tuple[str, ...]]:
    """Returns the prompts in the order of their frames, and what could not be read of later ones.

    Raises:
        ConfigError: If no chunk is told one of them.
    """
    fps, notes = clip.settings.fps, []
    told = [Prompted(0, clip.prompts[0], clip.ids)]
    for seconds, prompt in sorted(later.items()):
        frame, before = round(seconds * fps), told[-1]
        begin = chunk_begin(clip, rows, frame)
        what = f"{name} has {prompt!r:.80} at {seconds:g} s"
        if last is not None and begin >= last:
            why = f"the video has {last / fps:.3g} s, and no chunk of it begins so late"
            fix = f"make more than {begin} frames ({begin / fps:.3g} s), or let it be told earlier"
            raise ConfigError(what, why, fix)
        if begin == chunk_begin(clip, rows, before.frame):
            why = f"no chunk would be told {before.prompt!r:.80}, from {before.frame / fps:.3g} s"
            apart = clip.system.vae.strides[0] * rows.block / fps
            raise ConfigError(what, why, f"use times {apart:.3g} s apart, as long as a chunk")
        ids, unknown = ids_of(clip, prompt)
        told, notes = [*told, Prompted(frame, prompt, ids)], [*notes, *unknown]
    return tuple(told), tuple(notes)


def chunk_begin(clip: Job, rows: StreamRows, frame: int, *, within: bool = False) -> int:
    """Returns where the first chunk begins that begins at a frame or later.

    Args:
        clip: The run that makes the first clip.
        rows: The rows of the stream.
        frame: The frame.
        within: Whether it is to be the chunk that this frame is in.
    """
    vae = clip.system.vae
    first = rows.block if keeps(rows) else rows.context or rows.block
    second, step = vae.num_frames(first), vae.strides[0] * rows.block
    if frame <= 0 or within and frame < second:
        return 0
    chunks = (frame - second) / step
    return second + step * (math.floor(chunks) if within else max(0, math.ceil(chunks)))


def ids_of(clip: Job, prompt: str) -> tuple[Any, Any]:
    """Returns what the text encoder reads of another prompt of a stream, and unknown words.

    Raises:
        ConfigError: If it is none.
    """
    texts, _ = prompts.batch(prompt, clip.seeds, None)
    return read(clip.system, texts, clip.settings)


def keeps(rows: StreamRows) -> bool:
    """Whether finished frames are kept as keys and values instead of in the window."""
    return bool(np.asarray(rows.cycle.write).any())


def begin(
    pipe: "Pipeline", job: StreamJob, callback: Callback | None = None, kept: bool = True
) -> Stream:
    """Makes the first clip and noises it to the levels of the window.

    Who reads earlier frames from a cache begins with noise: no clip would be in it.

    Args:
        pipe: The loaded system.
        job: What is made.
        callback: Called with the number of each finished row of the first clip and its latents;
            an error that it raises ends the stream there.
        kept: Whether one may go back to a stream, or each chunk takes the memory of the one before.
    """
    clip = job.clip
    pipe.states(*(entry.ids for entry in job.told))  # with one use of the encoder
    told = tuple(tell(pipe, job, *entry) for entry in job.told)
    latents = None if keeps(job.rows) else pipe.sample(clip, callback)
    system, params = network(pipe, job)
    seed, shape = np.uint32(clip.seeds[0]), tuple(clip.shape)
    with stage("begin"):
        state = programs.begin_stream(
            system, params, told[0].conditions, job.rows, latents, seed, shape=shape, mesh=pipe.mesh
        )
    ready = None if latents is None or not job.rows.context else latents[:, : job.rows.context]
    run = Stream(told, state, None, ready, 0)
    compile_programs(pipe, job, run, programs.stream_chunk if kept else programs.stream_on)
    return run


def compile_programs(pipe: "Pipeline", job: StreamJob, run: Stream, chunk: Any) -> None:
    """Compiles all that later chunks run, whatever they are told; else they do so when called."""
    mesh, coder, told = pipe.mesh, pipe.coder(), run.told[0].conditions
    arguments = (*network(pipe, job), told, job.rows, run.state)
    place = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def latents(count: int) -> Any:
        shape = (job.clip.shape.batch, count, *job.clip.shape[2:])
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    block, first = latents(job.rows.block), run.decoder
    lowerings = [functools.partial(chunk.lower, *arguments, mesh=mesh)]
    if first is None:
        begins = block if run.ready is None else run.ready
        first = programs.decode_piece.eval_shape(*coder, begins, None)[2]
        first = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), first
        )
        lowerings += [
            functools.partial(programs.decode_piece.lower, *coder, begins, None, mesh=mesh)
        ]
    lowerings += [functools.partial(programs.decode_piece.lower, *coder, block, first, mesh=mesh)]
    if _retells(job.rows):
        latest = latents(job.rows.rewrite)
        lowerings += [functools.partial(programs.retell.lower, *arguments, latest, mesh=mesh)]
    programs.compile_together(lowerings)


def tell(
    pipe: "Pipeline", job: StreamJob, frame: int, prompt: str, ids: Any, action: str | None = None
) -> Telling:
    """Returns what the network is told of a prompt from a frame on, and of the first action."""
    said = Telling(frame, pipe.conditions(dataclasses.replace(job.clip, ids=ids)), prompt)
    names = actions_of(job.clip.system)
    return acting(job, said, action or names[0]) if names else said


def actions_of(system: Any) -> tuple[str, ...]:
    """Returns the actions that the network of a system can be told."""
    return getattr(system.model, "actions", ())


def check_action(job: StreamJob, action: str) -> tuple[str, ...]:
    """Returns the actions that the network of a stream knows; refuses another one.

    Raises:
        ConfigError: If it knows none of this name.
    """
    names = actions_of(job.clip.system)
    if action not in names:
        why = f"this model knows {', '.join(names) or 'none'}"
        raise ConfigError(f"the action {action!r:.80}", why, "use one that it was trained with")
    return names


def acting(job: StreamJob, said: Telling, action: str) -> Telling:
    """Returns what the network is told while an action is held.

    Raises:
        ConfigError: If it knows none of this name.
    """
    system, batch = job.clip.system, job.clip.shape.batch
    names = check_action(job, action)
    held = jnp.full((batch * len(system.branches), job.rows.buffer), names.index(action))
    conditions = dataclasses.replace(said.conditions, actions=held)
    return said._replace(conditions=conditions, action=action)


def told_at(run: Stream, frame: int) -> Telling:
    """Returns what is told with the chunk that begins at a frame, if nobody says anything more."""
    return [entry for entry in run.told if entry.frame <= frame][-1]


def next_chunk(
    pipe: "Pipeline", job: StreamJob, run: Stream, foresight: "Foresight | None" = None
) -> tuple[Stream, HostFrames]:
    """Makes the next chunk; the stream that it is given stays valid.

    Args:
        pipe: The loaded system.
        job: What is made.
        run: Where the stream is.
        foresight: What may have made it already.

    Raises:
        NumericsError: If a latent or a frame is not finite.
    """
    made, frames = (run, run.rest) if run.rest is not None else _made(pipe, job, run, foresight)
    count = len(frames)
    if job.num_frames is not None:
        count = min(count, job.num_frames - run.frames)
    rest = frames[count:] if count < len(frames) else None
    return made._replace(frames=run.frames + count, rest=rest), frames[:count]


def _made(
    pipe: "Pipeline", job: StreamJob, run: Stream, foresight: "Foresight | None"
) -> tuple[Stream, HostFrames]:
    """Returns the stream after a chunk, with what it had handed out before, and its frames."""

    def step(state: StreamState, told: Conditions) -> tuple[StreamState, Latents]:
        system, params = network(pipe, job)
        return programs.stream_chunk(system, params, told, job.rows, state, mesh=pipe.mesh)

    def checked(state: StreamState, told: Conditions) -> tuple[StreamState, Latents]:
        made = None if foresight is None else foresight.take(run, told)
        return made or next(samplers.stream(step, state, [told]))

    made, shown = begun(pipe, job, run, checked)
    return made, fetched(shown)


def begun(
    pipe: "Pipeline", job: StreamJob, run: Stream, step: Callable[..., Any]
) -> tuple[Stream, Shown]:
    """Returns the stream after a chunk and what is shown of it, for which nobody has waited."""
    state, latents = run.state, run.ready
    if latents is None:
        at, now, *_ = told_at(run, run.frames)
        if _retells(job.rows) and at > run.began >= 0:
            told = (*network(pipe, job), now, job.rows, state, _latest(job, run))
            state = programs.retell(*told, mesh=pipe.mesh)
        with stage("denoise"):
            state, latents = step(state, now)
    coder, params = pipe.coder()
    decoded = programs.decode_piece(coder, params, latents, run.decoder, mesh=pipe.mesh)
    latest = None
    if job.rows.rewrite:
        latest = jnp.concatenate([_latest(job, run), latents], 1)[:, -job.rows.rewrite :]
    made = Stream(run.told, state, decoded[2], None, run.frames, run.frames, latest)
    return made, (latents, *decoded[:2])


def fetched(shown: Shown) -> HostFrames:
    """Returns the frames of a chunk; refuses numbers that are none."""
    with stage("decode"):
        latents, frames, finite = jax.device_get(shown)
    if not np.isfinite(latents).all():
        raise out_of_range("a chunk of the stream")
    programs.check_finite(bool(finite))
    return frames[0]


def _retells(rows: StreamRows) -> bool:
    """Whether another prompt changes a cache."""
    return keeps(rows) and (rows.flush, rows.cut, rows.rewrite) != (None, None, 0)


def _latest(job: StreamJob, run: Stream) -> Latents:
    """Returns the finished latents that another prompt writes to the cache again."""
    batch, _, *size = job.clip.shape
    held = jnp.zeros((batch, 0, *size)) if run.latest is None else run.latest
    missing = job.rows.rewrite - held.shape[1]
    return jnp.pad(held, ((0, 0), (missing, 0), *[(0, 0)] * len(size))) if missing else held


def record(pipe: "Pipeline", job: StreamJob) -> records.Record:
    """Returns the record of a stream so far."""
    made = pipe.record(job.clip)
    rows = job.rows
    cycle = {"rows": rows.cycle.num_rows, "window": rows.buffer, "block": rows.block}
    digest = records.digest(*jax.tree.leaves((rows.ramp, rows.cycle)))
    more = {"context": rows.context, "held_bytes": job.held._asdict(), "sha256": digest}
    system = {**made.system, "stream": {**cycle, **more}}
    return dataclasses.replace(made, system=system)


def network(pipe: "Pipeline", job: StreamJob) -> tuple[Any, PyTree]:
    """Returns the first arguments of the programs of a stream."""
    return job.clip.system.only("model", *OF_A_ROW), {"model": pipe.params["model"]}
