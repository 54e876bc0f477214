"""A stream that is steered while it plays: told otherwise, taken back, saved and gone on with.

A session is a value between two chunks. `session, frames = session.step()` makes the next chunk,
with commands that are carried out before it; who keeps an old session has forked it. A saved one
goes on in another process as if it had never stopped, bit for bit on an equal device.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm import record as records
from jvdm.arrays import PyTree
from jvdm.errors import ConfigError, WeightsError
from jvdm.parallel import replicate
from jvdm.pipeline import programs, streaming
from jvdm.pipeline.foresight import Foresight
from jvdm.pipeline.request import Request
from jvdm.pipeline.streaming import HostFrames, Stream, StreamJob
from jvdm.reading import checked, parse_json
from jvdm.settings import PICTURE, seconds_of, settings_of
from jvdm.weights import safetensors

if TYPE_CHECKING:
    from jvdm.pipeline.pipeline import Pipeline

SCHEMA = "jvdm.session/1"
_PARTS = ("state", "decoder", "ready", "latest", "rest")  # of `Stream`, which are arrays
_FIX = "give a file that a session of this model saved"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """From the next chunk on this is to be seen."""

    text: str


@dataclasses.dataclass(frozen=True)
class Rewind:
    """The next chunk is the one that was made so long ago; what was told after it is forgotten."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Act:
    """From the next chunk on this is done, for a network that was trained with actions."""

    name: str


Command = Prompt | Rewind | Act


def command_of(line: str) -> Command:
    """Returns the command that a line is: `prompt a small blue box rests`, `act stop`, `rewind 2s`.

    Raises:
        ConfigError: If it is none.
    """
    verb, _, rest = line.strip().partition(" ")
    if verb == "prompt" and rest.strip():
        return Prompt(rest.strip())
    if verb == "rewind" and rest.strip():
        return Rewind(seconds_of("rewind", rest))
    if verb == "act" and rest.strip():
        return Act(rest.strip())
    why = "a command is: prompt TEXT, act NAME, or rewind 2s"
    raise ConfigError(f"{line.strip()!r:.80} is no command", why, "write it as one of them")


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A stream between two chunks.

    Attributes:
        pipe: The loaded system.
        job: What is made.
        run: Where the stream is.
        past: Where it was before each of the last `job.kept` chunks, in order.
        unknown: What the text encoder could not read of what was told since the last chunk.
    """

    pipe: "Pipeline"
    job: StreamJob
    run: Stream
    past: tuple[Stream, ...] = ()
    unknown: tuple[str, ...] = ()

    @classmethod
    def begin(cls, pipe: "Pipeline", job: StreamJob) -> "Session":
        """Returns the session before its first chunk, of a stream that was prepared."""
        return cls(pipe, job, streaming.begin(pipe, job))

    @property
    def frames(self) -> int:
        """Frames of the video that lie before the next chunk."""
        return self.run.frames

    @property
    def done(self) -> bool:
        """Whether the video has as many frames as were asked for."""
        return self.job.num_frames is not None and self.frames >= self.job.num_frames

    @property
    def prompt(self) -> str:
        """What is told of the next chunk."""
        return streaming.told_at(self.run, self.frames).prompt

    @property
    def action(self) -> str | None:
        """What is done while the next chunk comes to be; None of a network without actions."""
        return self.run.told[-1].action

    def step(
        self, *commands: Command | str, foresight: Foresight | None = None
    ) -> tuple["Session", HostFrames]:
        """Carries out commands and makes the next chunk.

        Args:
            *commands: Commands, or lines that are some.
            foresight: What may have made the chunk already.

        Returns:
            The session after it, and its frames, uint8 `[T, H, W, 3]`.

        Raises:
            ConfigError: If a command cannot be carried out, or the video is done.
            NumericsError: If a latent or a frame is not finite.
        """
        for command in commands:
            self = self.after(command)
        if self.done:
            why = f"{self.job.num_frames} frames were asked for, and they are made"
            raise ConfigError("the next chunk was asked for", why, "ask for no num_frames")
        ahead = () if foresight is None else (foresight,)
        run, frames = streaming.next_chunk(self.pipe, self.job, self.run, *ahead)
        past = (*self.past, self.run)[-self.job.kept :] if self.job.kept else ()
        return dataclasses.replace(self, run=run, past=past, unknown=()), frames

    def after(self, command: Command | str) -> "Session":
        """Returns the session after a command, or after the line that is one (`command_of`).

        Raises:
            ConfigError: If it cannot be carried out.
        """
        command = command_of(command) if isinstance(command, str) else command
        if isinstance(command, Rewind):
            return self._back(seconds_of("rewind", command.seconds))
        if isinstance(command, Act):
            acting = [streaming.acting(self.job, said, command.name) for said in self.run.told]
            return dataclasses.replace(self, run=self.run._replace(told=tuple(acting)))
        ids, unknown = streaming.ids_of(self.job.clip, command.text)
        told = streaming.tell(self.pipe, self.job, self.frames, command.text, ids, self.action)
        later = tuple(entry for entry in self.run.told if entry.frame > self.frames)
        run = self.run._replace(told=(told, *later))
        return dataclasses.replace(self, run=run, unknown=(*self.unknown, *unknown))

    def _back(self, seconds: float) -> "Session":
        fps = self.job.clip.settings.fps
        before = [i for i, run in enumerate(self.past) if run.frames <= self.frames - seconds * fps]
        if not before:
            first = self.past[0].frames if self.past else self.frames
            raise ConfigError(
                f"rewind by {seconds:g} s",
                f"the states of the last {(self.frames - first) / fps:.2g} s are kept",
                "keep more from the start on, as memory allows: keep='60s' (--keep 60s)",
            )
        return dataclasses.replace(self, run=self.past[before[-1]], past=self.past[: before[-1]])

    def save(self, path: str | Path, loaded: Mapping[str, Any] | None = None) -> None:
        """Writes the session, whole or not at all; what lies before it cannot be gone back to.

        Args:
            path: The file, which ends in .safetensors by custom.
            loaded: How the model was loaded, for `jvdm stream --resume`.

        Raises:
            ConfigError: If its network is told pictures in every chunk, or nothing can be written
                there.
        """
        if self.job.clip.pictures is not None:
            why = "its network is told pictures in every chunk, which the file does not hold"
            raise ConfigError("the session was to be saved", why, "let it go on in this process")
        state = {name: getattr(self.run, name) for name in _PARTS}
        about = {
            "schema": SCHEMA,
            **_identity(self.pipe, self.job),
            "settings": _settings(self.job),
            "told": [[entry.frame, entry.prompt] for entry in self.run.told],
            "action": self.action,
            "frames": self.frames,
            "began": self.run.began,
            "loaded": dict(loaded or {}),
            "versions": records.versions(),
        }
        metadata = {"jvdm.session": json.dumps(about, default=str)}
        arrays = {name: _plain(leaf) for name, leaf in _named(state).items()}
        safetensors.save_stored(path, jax.device_get(arrays), metadata)


def begin_session(
    pipe: "Pipeline",
    request: Request,
    then: Mapping[Any, str] | None = None,
    keep: str | float | None = None,
) -> Session:
    """Begins a stream that can be steered.

    Args:
        pipe: The loaded system.
        request: What was asked for; its number of frames, or duration, is that of the video.
        then: Other prompts by the time from which they are told.
        keep: How far back one can go, as `8s`; None keeps nothing.

    Raises:
        ConfigError: If a value cannot be used, or the system makes clips only.
        DeviceMemoryError: If what is kept does not fit; it names the largest that does.
    """
    job = streaming.prepare_stream(pipe, request, then or {}, keep)
    for message in job.clip.warnings:
        warnings.warn(message, stacklevel=3)
    return Session.begin(pipe, job)


def load_session(
    pipe: "Pipeline", path: str | Path, keep: str | float | None = None, **length: Any
) -> Session:
    """Goes on with a session that was saved.

    Args:
        pipe: The system that made it.
        path: The file.
        keep: How far back one will be able to go, as `8s`; None keeps nothing.
        **length: `num_frames` or `duration` of the whole video, if another than before.

    Raises:
        WeightsError: If the file is broken, no session, or that of an earlier jvdm whose streams
            kept less.
        ConfigError: If another system, other weights or another method made it.
    """
    about, arrays = read_session(path)
    settings = checked(Mapping[str, Any], about.get("settings"), "settings", path, _FIX)
    told = checked(tuple[tuple[int, str], ...], about.get("told"), "told", path, _FIX)
    frames, began = (
        checked(int, about.get(name), name, path, _FIX) for name in ("frames", "began")
    )
    action = checked(str | None, about.get("action"), "action", path, _FIX)
    if not told:
        raise WeightsError(f"{path} tells no prompt", "", _FIX)
    known = {field.name for field in dataclasses.fields(Request)}
    request = Request(**{name: value for name, value in settings.items() if name in known})
    if any(value is not None for value in length.values()):
        request = dataclasses.replace(request, **({"num_frames": None} | length))
    job = streaming.prepare_stream(pipe, request, {}, keep)
    for name, value in json.loads(json.dumps(_identity(pipe, job), default=str)).items():
        if about.get(name) != value:
            lacking = _lacking(about.get(name), value)
            if lacking:
                raise _earlier(path, about, "rules", lacking)
            what = f"{path} was made with other {name}"
            why = f"{about.get(name)!r:.80} there, {value!r:.80} here"
            raise ConfigError(what, why, "load the model and the method that made it")
    if job.num_frames is not None and frames >= job.num_frames:
        what = f"{path} is a session of {frames} frames ({frames / job.clip.settings.fps:.3g} s)"
        why = f"the video is to have {job.num_frames}, so that nothing is left to be made"
        raise ConfigError(what, why, "say a longer one: duration='60s' (--duration 60s)")
    entries = tuple(
        streaming.tell(pipe, job, at, text, streaming.ids_of(job.clip, text)[0], action)
        for at, text in told
    )
    parts = _restored(pipe, job, entries[0].conditions, arrays, path, about)
    run = Stream(told=entries, frames=frames, began=began, **parts)
    streaming.compile_programs(pipe, job, run, programs.stream_chunk)
    return Session(pipe, job, run)


def read_session(path: str | Path) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
    """Reads what a session is, and its arrays by name, which stay in the file until they are used.

    Raises:
        WeightsError: If the file is missing, broken or no session.
    """
    _, metadata = safetensors.read_header(path)
    if "jvdm.session" not in metadata:
        raise WeightsError(f"{path} holds no session", "", _FIX)
    about = parse_json(metadata["jvdm.session"], path, "session", WeightsError)
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        what = f"{path} has the schema {str(about)[:80]}"
        raise WeightsError(what, f"this jvdm reads {SCHEMA}", "use the jvdm that wrote it")
    return about, safetensors.map_stored(path)


def _settings(job: StreamJob) -> dict[str, Any]:
    """Returns what was asked for, without the pictures that the stream began with."""
    settings = dataclasses.asdict(job.clip.settings)
    settings |= dict.fromkeys((*settings_of(PICTURE), "duration", "num_videos"))
    asked = {"prompt": job.clip.prompts[0], "seed": int(job.clip.seeds[0])}
    return {**settings, **asked, "num_frames": job.num_frames}


def _identity(pipe: "Pipeline", job: StreamJob) -> dict[str, Any]:
    """Returns what must be equal where a session goes on."""
    rules = job.clip.system_recorded()
    rules.pop("matrix")
    rows = records.digest(*jax.tree.leaves((job.rows.ramp, job.rows.cycle)))
    return {"weights": dict(pipe.identity), "rules": rules, "rows": rows}


def _lacking(old: Any, now: Any) -> list[str] | None:
    """Returns which fields of rules an older record does not say; None if it says others."""
    if isinstance(old, list) and isinstance(now, list) and len(old) == len(now):
        old, now = ({str(at): item for at, item in enumerate(items)} for items in (old, now))
    if not (isinstance(old, Mapping) and isinstance(now, Mapping)):
        return [] if old == now else None
    found = [str(name) for name in now if name not in old]
    for name, item in old.items():
        deeper = _lacking(item, now[name]) if name in now else None
        if deeper is None:
            return None
        found += deeper
    return found


def _earlier(path: Any, about: Mapping[str, Any], what: str, lacking: list[str]) -> WeightsError:
    """Says that an earlier jvdm, whose streams kept less, saved a session."""
    versions = about.get("versions")
    version = versions.get("jvdm", "?") if isinstance(versions, Mapping) else "?"
    return WeightsError(
        f"{path} was saved by an earlier jvdm (version {version})",
        f"its {what} are without {safetensors.listed(lacking)}, which streams have since",
        "go on in the jvdm that saved it, or begin the stream anew with its prompt and seed, "
        "without --resume",
    )


def _restored(
    pipe: "Pipeline",
    job: StreamJob,
    conditions: Any,
    arrays: Mapping[str, np.ndarray],
    path: Any,
    about: Mapping[str, Any],
) -> dict[str, PyTree]:
    """Returns the arrays of a stream by the names of its fields."""
    system, params = streaming.network(pipe, job)
    shape = tuple(job.clip.shape)
    begun = (system, params, conditions, job.rows, None, np.uint32(0))

    def latents(name: str, count: int) -> Any:
        count = arrays[name].shape[1] if name == "['latest']" else count
        return jax.ShapeDtypeStruct((shape[0], count, *shape[2:]), jnp.float32)

    expected: dict[str, Any] = {"state": programs.begin_stream.eval_shape(*begun, shape=shape)}
    expected |= dict.fromkeys(_PARTS[1:])
    if any(name.startswith("['decoder']") for name in arrays):
        piece = latents("", job.rows.block)
        expected["decoder"] = programs.decode_piece.eval_shape(*pipe.coder(), piece, None)[2]
    for name, count in (("ready", job.rows.context), ("latest", job.rows.rewrite)):
        if f"['{name}']" in arrays:
            expected[name] = latents(f"['{name}']", count)
    if "['rest']" in arrays:
        height, width = job.clip.settings.height, job.clip.settings.width
        size = (len(arrays["['rest']"]), height, width, 3)
        expected["rest"] = jax.ShapeDtypeStruct(size, jnp.uint8)
    places = _named(expected)
    sizes = {name: _plain_shape(leaf) for name, leaf in places.items()}
    lacking = sorted({name.rsplit(".", 1)[-1] for name in sizes.keys() - arrays.keys()})
    if lacking and arrays.keys() <= sizes.keys():
        raise _earlier(path, about, "arrays", lacking)
    safetensors.match(path, dict(arrays), sizes, _FIX)
    leaves = [_typed(arrays[name], leaf, name, path) for name, leaf in places.items()]
    made = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    rest = None if made["rest"] is None else np.asarray(made.pop("rest"))
    if pipe.mesh is not None:
        placed = programs.place_stream(system, made.pop("state"), mesh=pipe.mesh)
        made = {**replicate(made, pipe.mesh), "state": placed}
    return {**made, "rest": rest}


def _named(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by their places in it."""
    return {
        jax.tree_util.keystr(place): x for place, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """Returns the numbers of a key, and everything else as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _plain_shape(leaf: Any) -> Any:
    return jax.eval_shape(_plain, leaf)


def _typed(array: np.ndarray, expected: Any, name: str, path: Any) -> Any:
    """Returns an array as it was before it was written."""
    plain = _plain_shape(expected)
    if array.dtype != plain.dtype:
        what = f"{name} of {path} is {array.dtype}"
        raise WeightsError(what, f"here it is {plain.dtype}", "load the model with the same dtype")
    value = jnp.asarray(array)
    return jax.random.wrap_key_data(value) if _is_key(expected) else value
