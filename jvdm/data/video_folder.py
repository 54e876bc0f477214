"""The user's own folder of videos with captions, as clips of one size and rate.

Captions are in a text file beside each video (`ball.mp4`, `ball.txt`), or in
`metadata.csv` or `metadata.jsonl` in the folder. What cannot be used is left
out and listed with the reason; it never ends a run, unless it is too much.
Hidden files, such as `._ball.mp4`, are none. Pictures are shown as `jvdm.media`
says: upright, with square pixels, transparent parts on white.
"""

import codecs
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jvdm import media
from jvdm.arrays import Int
from jvdm.data.video_files import Unusable, decode_clip, seconds
from jvdm.errors import ConfigError, JvdmError, shortened
from jvdm.reading import parse_json

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"})
FILE_COLUMNS = ("file_name", "video", "path", "file")
TEXT_COLUMNS = ("text", "caption", "prompt")
METADATA = ("metadata.csv", "metadata.jsonl")
QUARANTINE = "quarantine.jsonl"
END = 4096  # bytes of each end of a video that tell it from another one
LONGEST = 300  # characters of a reason
_LOST = re.compile("[\0\ufffd\ud800-\udfff]")


@runtime_checkable
class Tokenizer(Protocol):
    """What turns a caption into token ids; returns the unknown words too."""

    def encode(self, prompt: str) -> tuple[Int[np.ndarray, " L"], tuple[str, ...]]:
        """Returns ids and unknown words; raises `ConfigError` if it is too long."""
        ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """A video file that passed inspection, and how many clips it gives."""

    path: Path
    caption: str
    tokens: tuple[int, ...]
    unknown: tuple[str, ...]
    clips: int


@dataclasses.dataclass(frozen=True)
class VideoFolder:
    """Clips of the videos in `folder`, in the order of their names.

    Each video is cut into successive clips of `num_frames` at `fps`; the frame
    shown at each instant is taken. Pictures are cropped at the centre to the
    wanted shape and resized.
    """

    folder: Path
    tokenizer: Tokenizer
    height: int = 128
    width: int = 128
    num_frames: int = 33
    fps: float = 12.0
    clips_per_video: int | None = None
    """At most so many from the start of each video; None for all."""
    max_bad: float = 0.5
    """Share of videos that may be unusable; above it the run stops."""
    max_unknown: float = 0.5
    """Share of captions that may have words unknown to the tokenizer, which all look alike to
    the model; above it the run does not start."""

    def open(self, workdir: Path | None = None) -> "FolderRecords":
        """Inspects every video; what is unusable goes to `workdir/quarantine.jsonl`.

        Raises:
            ConfigError: If the folder holds no usable video, or too few, or `fps` is no rate.
        """
        media.check_fps("fps of the folder", self.fps)
        listed = _listed(Path(self.folder))
        quarantine = Quarantine(workdir, total=len(listed), max_bad=self.max_bad)
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda item: self._inspect(item, quarantine), listed)
            entries = tuple(entry for entry in found if entry is not None)
        quarantine.check()
        if not entries:
            raise ConfigError(
                f"{self.folder} has no usable video",
                quarantine.reasons() or "there is none",
                "put videos (*.mp4) beside captions (*.txt), or list them in metadata.csv "
                "with the columns file_name and text",
            )
        if quarantine.bad:
            where = quarantine.path or "nowhere, as there is no work directory"
            count = f"{len(quarantine.bad)} of {len(listed)} videos are left out"
            print(f"{count}; the reasons are in {where}", file=sys.stderr)
        self._check_words(entries)
        return FolderRecords(self, entries, quarantine)

    def _inspect(self, item: tuple[Path, str | Path], quarantine: "Quarantine") -> Entry | None:
        path, caption = item
        try:
            caption = (_text(caption) if isinstance(caption, Path) else caption).strip()
            if not caption:
                raise Unusable("it has no caption")
            if _LOST.search(caption):
                raise Unusable("its caption has characters that were lost in a conversion")
            tokens, unknown = self.tokenizer.encode(caption)
            frames = math.floor(seconds(path) * self.fps + 0.01)
            if frames < self.num_frames:
                raise Unusable(
                    f"it has {frames} frames at {self.fps:g} fps, {self.num_frames} are needed"
                )
        except (Unusable, JvdmError) as error:
            quarantine.add(path, str(error))
            return None
        clips = min(frames // self.num_frames, self.clips_per_video or frames)
        return Entry(path, caption, tuple(int(token) for token in tokens), unknown, clips)

    def _check_words(self, entries: tuple[Entry, ...]) -> None:
        """Says how many captions have unknown words, and which; refuses too many."""
        words = Counter(word for entry in entries for word in entry.unknown)
        count = sum(bool(entry.unknown) for entry in entries)
        what = f"{count} of {len(entries)} captions have words that the model does not know"
        which = ", ".join(f"{word[:40]} ({times})" for word, times in words.most_common(10))
        if count > self.max_unknown * len(entries):
            fix = f"use other words, or raise max_unknown (it is {self.max_unknown:g})"
            raise ConfigError(what, f"most often {which}", fix)
        if count:
            print(f"{what}: most often {which}", file=sys.stderr)


class FolderRecords:
    """The clips of a `VideoFolder` as a list; None where decoding fails."""

    def __init__(
        self, folder: VideoFolder, entries: tuple[Entry, ...], quarantine: "Quarantine"
    ) -> None:
        self._folder, self._entries, self._quarantine = folder, entries, quarantine
        self._ends = np.cumsum([entry.clips for entry in entries])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width of every clip."""
        return self._folder.num_frames, self._folder.height, self._folder.width

    def digest(self) -> str:
        """Returns a fingerprint of settings and of the files: name, caption, size, both ends."""
        settings = (*self.shape, self._folder.fps)
        root = Path(self._folder.folder)
        files = [
            (str(entry.path.relative_to(root)), entry.caption, *_ends(entry.path))
            for entry in self._entries
        ]
        return hashlib.sha256(repr((settings, files)).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        """Returns `video` uint8 `[T, H, W, 3]`, `tokens` int32 and `caption`.

        Raises:
            ConfigError: If too many videos turned out to be unusable.
        """
        number = range(len(self))[index]
        place = int(np.searchsorted(self._ends, number, side="right"))
        entry, wanted = self._entries[place], self._folder
        start = (number - int(self._ends[place]) + entry.clips) * wanted.num_frames / wanted.fps
        try:
            size = (wanted.height, wanted.width)
            video = decode_clip(entry.path, start, wanted.num_frames, wanted.fps, size)
        except Unusable as error:
            self._quarantine.add(entry.path, str(error))
            self._quarantine.check()
            return None
        tokens = np.asarray(entry.tokens, np.int32)
        return {"video": video, "tokens": tokens, "caption": entry.caption}


def _ends(path: Path) -> tuple[int, bytes, bytes]:
    """Returns the size of a file, its first bytes and its last ones."""
    with path.open("rb") as file:
        first, size = file.read(END), file.seek(0, 2)
        file.seek(max(size - END, 0))
        return size, first, file.read()


class Quarantine:
    """Counts unusable videos and lists them, each once, as JSON lines.

    Args:
        workdir: Where the list is written; None writes none.
        total: Number of videos.
        max_bad: Share of them that may be unusable.
    """

    def __init__(self, workdir: Path | None, total: int, max_bad: float) -> None:
        self.path = None if workdir is None else workdir / QUARANTINE
        self.bad: dict[str, str] = {}
        self._total, self._max_bad = total, max_bad
        self._lock = threading.Lock()
        if self.path is not None:
            self.path.write_text("")

    def add(self, path: Path, reason: str) -> None:
        """Lists `path` with the reason, once; what is very long is cut."""
        reason = shortened(reason, LONGEST)
        with self._lock:
            if str(path) in self.bad:
                return
            self.bad[str(path)] = reason
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"file": str(path), "reason": reason}) + "\n")

    def reasons(self) -> str:
        """Returns the first three, for a message."""
        first = list(self.bad.items())[:3]
        named = [(Path(path).name[-60:], reason) for path, reason in first]
        return "; ".join(f"{name if name.isprintable() else ascii(name)}: {r}" for name, r in named)

    def check(self) -> None:
        """Raises `ConfigError` if too many are unusable."""
        if len(self.bad) > self._max_bad * self._total:
            raise ConfigError(
                f"{len(self.bad)} of {self._total} videos are unusable",
                self.reasons(),
                f"repair them, or raise max_bad (it is {self._max_bad:g}); "
                f"all are listed in {self.path}",
            )


def _listed(folder: Path) -> list[tuple[Path, str | Path]]:
    """Returns all videos with their captions or the files of these, "" where there is none.

    Raises:
        ConfigError: If there is no such folder, or its metadata cannot be understood.
    """
    if not folder.is_dir():
        raise ConfigError(f"folder {folder} does not exist", fix="give the folder of your videos")
    files = sorted(path for path in folder.rglob("*") if not _hidden(path.relative_to(folder)))
    tables = [path for path in files if path.parent == folder and path.name.lower() in METADATA]
    if len(tables) > 1:
        raise ConfigError(f"{folder} has {' and '.join(METADATA)}", "one of them must say it all")
    if tables:
        return _from_table(tables[0])
    captions = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    return [(path, captions.get(path.with_suffix(""), "")) for path in videos]


def _hidden(path: Path) -> bool:
    """Whether a file is one of the system's, such as `._ball.mp4` or `__MACOSX/ball.mp4`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _text(path: Path) -> str:
    """Reads UTF-8 with or without a mark, UTF-16 with one, or else the Windows code page 1252.

    Raises:
        Unusable: If it is none of them, or cannot be read.
    """
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode("utf-8-sig")
        return content.decode("cp1252")
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path.name} is no text in UTF-8 or code page 1252 ({error})") from error


def _from_table(path: Path) -> list[tuple[Path, str | Path]]:
    try:
        file = io.StringIO(_text(path), newline="")
        lines = csv.DictReader(file) if path.suffix.lower() == ".csv" else _json_lines(file, path)
        rows = [{key: value for key, value in row.items() if key} for row in lines]
    except (Unusable, csv.Error) as error:
        raise ConfigError(f"{path} is no table", str(error), "save it as UTF-8") from error
    columns = list(dict.fromkeys(key for row in rows for key in row))
    found = [
        next((n for n in names if n in columns), None) for names in (FILE_COLUMNS, TEXT_COLUMNS)
    ]
    if rows and None in found:
        raise ConfigError(
            f"{path} has the columns {', '.join(columns)}",
            f"one of {', '.join(FILE_COLUMNS)} and one of {', '.join(TEXT_COLUMNS)} are needed",
            "rename the columns",
        )
    cells = [[row.get(column) for column in found] for row in rows]
    texts = [[cell if isinstance(cell, str) else "" for cell in row] for row in cells]
    return [
        (path.parent / (name or f"{path.name} row {number}"), caption)
        for number, (name, caption) in enumerate(texts, 1)
    ]


def _json_lines(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, path, "table")
        except ConfigError as error:
            raise ConfigError(f"{path} line {number} is not JSON", error.why) from error
        if not isinstance(row, dict):
            raise ConfigError(
                f"{path} line {number} is not a JSON object", fix="write one per line"
            )
        yield row
