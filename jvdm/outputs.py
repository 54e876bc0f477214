"""The files of a run: latents first, then video, contact sheet and record."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvdm import record as records
from jvdm.arrays import UInt8
from jvdm.errors import ConfigError, WeightsError
from jvdm.files import probe_writable, reserving, unwritable
from jvdm.media import LIVE_WRITERS, WRITERS
from jvdm.reading import parse_json
from jvdm.record import Record
from jvdm.stages import seen, stage
from jvdm.video import Video
from jvdm.weights import safetensors

LATENTS_SUFFIX = ".latents.safetensors"
SUFFIXES = (".mp4", ".png", ".json", LATENTS_SUFFIX)
_HEADER = "jvdm.latents"


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Names of the files of one video; the ending is that of the video."""

    folder: Path
    stem: str
    ending: str = ".mp4"

    @property
    def video(self) -> Path:
        """The video."""
        return self.folder / f"{self.stem}{self.ending}"

    @property
    def sheet(self) -> Path:
        """Its frames in a row."""
        return self.folder / f"{self.stem}.png"

    @property
    def record(self) -> Path:
        """How it was made."""
        return self.folder / f"{self.stem}.json"

    @property
    def latents(self) -> Path:
        """What it is decoded from."""
        return self.folder / f"{self.stem}{LATENTS_SUFFIX}"


def named(output: Path, stem: str) -> Outputs:
    """Returns the names that `--output` asks for.

    Args:
        output: A folder, or the name of a video with the ending of one.
        stem: Stem of the files when `output` is a folder.

    Raises:
        ConfigError: If it has the ending of a file that is not written.
    """
    output = output.expanduser()
    if os.path.isdir(output) or not output.suffix[1:2].isalpha():
        return Outputs(output, stem)
    if output.suffix.lower() in WRITERS:
        return Outputs(output.parent, output.stem, output.suffix)
    raise ConfigError(
        f"--output ends in {output.suffix[:20]}",
        f"videos are written as {', '.join(WRITERS)}",
        f"end it in .mp4, or make that folder first: {output.parent / output.stem[:80]}.mp4",
    )


def check_live(outputs: Outputs) -> None:
    """Refuses the name of a film that cannot be watched while it is made.

    Raises:
        ConfigError: It names the endings that can.
    """
    if outputs.ending.lower() not in LIVE_WRITERS:
        why = f"a stream is written as it goes, as {' or '.join(LIVE_WRITERS)}"
        raise ConfigError(f"--output ends in {outputs.ending}", why, "end it in .mp4")


@contextlib.contextmanager
def reserved(output: Path, name: str, seeds: Mapping[int, int]) -> Iterator[dict[int, Outputs]]:
    """Gives names to the files of several videos; no other run gets them until the end.

    Args:
        output: A folder, or the name of a video; several videos get their seed in it.
        name: Stem of the files when `output` is a folder; the seed is added.
        seeds: Seed of each video, by its index.

    Raises:
        ConfigError: If the names cannot be used.
    """
    with contextlib.ExitStack() as stack:
        files = {}
        for index, seed in seeds.items():
            wanted = named(output, f"{name}_{seed}")
            stem = wanted.stem
            if len(seeds) > 1 and stem != f"{name}_{seed}":
                stem = f"{stem}_{seed}"
            stem = stack.enter_context(reserving(wanted.folder, stem, {wanted.ending, *SUFFIXES}))
            files[index] = dataclasses.replace(wanted, stem=stem)
        yield files


def probe(outputs: Outputs, *, encode: bool = True) -> None:
    """Finds out before the work whether its result can be written.

    Raises:
        ConfigError: If nothing can be written there, or no video be encoded.
    """
    probe_writable(outputs.folder)
    if not encode:
        return
    path = outputs.folder / f".{os.getpid()}.probe{outputs.ending}"
    try:
        Video(np.zeros((1, 16, 16, 3), np.uint8), 12.0).save(path)
    except ImportError as error:
        fix = "install it with `pip install av`, or add --latents-only"
        raise ConfigError("videos cannot be written", "PyAV is not installed", fix) from error
    finally:
        path.unlink(missing_ok=True)


def save_latents(outputs: Outputs, latents: np.ndarray, record: Record) -> Record:
    """Writes the latents `[F, H, W, C]` of one video, with the record inside.

    Returns:
        The record with the digest of the latents.
    """
    latents = np.ascontiguousarray(latents, np.float32)
    digest = hashlib.sha256(latents.data).hexdigest()
    record = dataclasses.replace(
        record,
        sha256={**record.sha256, "latents": digest},
        outputs={**record.outputs, "latents": str(outputs.latents)},
    )
    header = {_HEADER: json.dumps(record.as_data(), default=str)}
    safetensors.save(outputs.latents, {"latents": latents}, dtype="float32", metadata=header)
    return record


def load_latents(path: Path) -> tuple[np.ndarray, Record]:
    """Reads latents `[F, H, W, C]` and the record inside.

    Raises:
        WeightsError: If the file is missing, broken, or holds no latents of jvdm.
    """
    _, metadata = safetensors.read_header(path)
    tree = safetensors.load(path)
    if _HEADER not in metadata or "latents" not in tree:
        what = f"{path} holds no latents of jvdm"
        raise WeightsError(what, "", f"give a file that ends in {LATENTS_SUFFIX}")
    latents = np.asarray(tree["latents"])
    if latents.ndim != 4 or latents.dtype != np.float32 or not latents.size:
        what = f"{path} holds {latents.dtype} of the shape {latents.shape}"
        raise WeightsError(what, "latents are float32 [F, H, W, C]", "give other latents")
    content = parse_json(metadata[_HEADER], path, "record", WeightsError)
    return latents, records.parse(content, path)


def save_video(outputs: Outputs, video: Video, record: Record) -> Record:
    """Writes video, contact sheet and record; what was interrupted stays so.

    Returns:
        The record that was written.
    """
    with stage("save"):
        video.save(outputs.video)
        video.save_sheet(outputs.sheet)
        files = {"video": str(outputs.video), "sheet": str(outputs.sheet)}
        sha256 = {**record.sha256, "frames": video.digest()}
        status = "interrupted" if record.status == "interrupted" else "done"
        written = {**record.outputs, **files}
        record = dataclasses.replace(record, sha256=sha256, outputs=written, status=status)
    return save_record(outputs, record)


def save_stream(
    outputs: Outputs,
    chunks: Iterable[UInt8[np.ndarray, "T H W 3"]],
    fps: float,
    record_of: Callable[[int], Record],
) -> Record:
    """Writes a film while it is made, under its own name, and then its record.

    Whatever ends it, what was made until then is a whole film.

    Args:
        outputs: Names of the files.
        chunks: Frames, as they come.
        fps: Frames per second.
        record_of: Makes the record of so many frames.

    Returns:
        The record that was written.
    """
    pixels, count, failed = hashlib.sha256(), 0, None

    def frames() -> Iterator[np.ndarray]:
        nonlocal count, failed
        try:
            for chunk in chunks:
                pixels.update(np.ascontiguousarray(chunk).data)
                count += len(chunk)
                yield from chunk
        except BaseException as error:  # noqa: BLE001 - raised when the film is whole
            failed = error

    try:
        LIVE_WRITERS[outputs.ending.lower()](outputs.video, frames(), fps)
    except OSError as error:
        raise unwritable(outputs.video, error) from error
    record = record_of(count)
    record = dataclasses.replace(
        record,
        sha256={**record.sha256, "pixels": pixels.hexdigest()},
        outputs={**record.outputs, "video": str(outputs.video)},
        status="interrupted" if failed else record.status,
    )
    if count:
        record = save_record(outputs, record)
    else:
        outputs.video.unlink(missing_ok=True)
    if failed:
        raise failed
    return record


def save_record(outputs: Outputs, record: Record, **changes: Any) -> Record:
    """Writes the record with the times until now and with `changes`."""
    seconds = {**record.seconds, **seen().seconds}
    files = {**record.outputs, "record": str(outputs.record)}
    record = dataclasses.replace(record, seconds=seconds, outputs=files, **changes)
    records.write(outputs.record, record)
    return record


def listing(record: Mapping[str, Any]) -> str:
    """Returns one line per file of a record, the video first, and how to finish it if need be."""
    order = ("video", "sheet", "record", "latents")
    files = record["outputs"]
    lines = [f"{name:>8}  {files[name]}" for name in order if name in files]
    if record["status"] == "latents":
        lines.append(f"{'next':>8}  {_finishing(files)}")
    return "\n".join(lines)


@contextlib.contextmanager
def finishable(saved: Mapping[int, Record]) -> Iterator[None]:
    """Says how the videos whose latents are saved can be finished, if what is inside stops."""
    try:
        yield
    except BaseException:
        for record in saved.values():
            how = _finishing(record.outputs)
            if record.status == "interrupted":
                say(f"{record.warnings[-1]}; see what is there with {how}")
            if record.status == "latents":
                say(f"the latents are saved; finish the video with {how}")
        raise


def _finishing(files: Mapping[str, str]) -> str:
    return f"jvdm decode {shlex.quote(files['latents'])}"


def say(*messages: str) -> None:
    """Prints what the user should know where it does not mix with the result."""
    for message in messages:
        print(f"jvdm: {message}", file=sys.stderr)
