"""A job as it is asked for, looked at, and kept in a folder of its own."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jvdm.errors import ConfigError, JvdmError
from jvdm.files import write_text
from jvdm.outputs import Outputs
from jvdm.pipeline import Job, Request
from jvdm.reading import made_of, read_json
from jvdm.recipes import nearest
from jvdm.settings import PICTURE, Settings, settings_of

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
"""States that are not left again."""
NAME = re.compile(r"[0-9a-f]{32}")
"""What the name of a job looks like; 128 random bits, so that nobody finds another's."""

_REQUEST, _STATUS = "request.json", "status.json"
_FILMS = ((4, b"ftyp", ".mp4"), (0, b"\x1aE\xdf\xa3", ".mkv"), (8, b"AVI ", ".avi"))
_PICTURES = (
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (8, b"WEBP", ".webp"),
    (0, b"BM", ".bmp"),
)
_GIF = (0, b"GIF8", ".gif")
FILM_ENDINGS = (*(ending for _, _, ending in _FILMS), ".gif")


@dataclasses.dataclass(frozen=True)
class Status:
    """What can be said of a job.

    Attributes:
        id: Its name.
        client: Who asked for it.
        state: How far it is.
        created: When it was asked for, in seconds since 1970; so are `started` and `ended`.
        ahead: Jobs that have their turn before it, while it waits.
        row: Rows of its timestep matrix that are done.
        rows: All of them.
        videos: Videos that are finished.
        error: What, why and fix, where it failed or was cancelled.
        warnings: What the user should know.
    """

    id: str
    client: str
    state: State
    created: float
    started: float | None = None
    ended: float | None = None
    ahead: int = 0
    row: int = 0
    rows: int = 0
    videos: int = 0
    error: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(eq=False)
class Task:
    """A job while it waits and runs, and its files afterwards.

    Attributes:
        request: What was asked for, with its seed.
        job: The same, checked and settled; None where it has ended.
        folder: Where its files are.
        status: What is said of it; replaced, never changed.
        cancelled: Whether nobody wants it any more.
        forgotten: Whether its files go too.
        size_bytes: Of its files, when it has ended.
    """

    request: Request
    job: Job | None
    folder: Path
    status: Status
    cancelled: bool = False
    forgotten: bool = False
    size_bytes: int = 0

    def update(self, **changes: Any) -> None:
        """Says something else of it."""
        self.status = dataclasses.replace(self.status, **changes)

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status.state in ENDED

    def outputs(self, index: int) -> Outputs:
        """Returns the names of the files of one of its videos."""
        return Outputs(self.folder, f"video_{index}")

    @property
    def shared(self) -> dict[str, Any] | None:
        """What must be equal in jobs that are made in one call; None if it is made alone."""
        if self.job is None or any(getattr(self.request, name) for name in settings_of(PICTURE)):
            return None
        own = ("prompt", "seed", "num_videos")
        names = [field.name for field in dataclasses.fields(Settings) if field.name not in own]
        return {name: getattr(self.job.settings, name) for name in names}


def error_data(error: JvdmError) -> dict[str, str]:
    """Returns an error as JSON data: what, why, fix, and its kind as `code`."""
    parts = {name: getattr(error, name) for name in ("what", "why", "fix")}
    return {**parts, "code": type(error).__name__}


def check_names(settings: Mapping[str, Any]) -> None:
    """Refuses what is no setting; `jvdm.settings` has the one list of them.

    Raises:
        ConfigError: It says which was probably meant.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in settings:
        if name not in known:
            what = f"{name!r:.80} was given"
            raise ConfigError(what, "there is no such setting", nearest(str(name)[:80], known))


def ending_of(name: str, content: bytes) -> str:
    """Returns the ending of a file that was sent, by its first bytes.

    Nothing else is opened: FFmpeg would read lists of other files, and what they name.

    Args:
        name: The setting that it is for.
        content: Its bytes.

    Raises:
        ConfigError: If it is no picture, or film, of a known kind.
    """
    kinds = {"image": (*_PICTURES, _GIF), "last_image": (*_PICTURES, _GIF), "video": _FILMS}
    for at, magic, ending in kinds.get(name, (*_PICTURES, *_FILMS)) + (_GIF,):
        if content[at : at + len(magic)] == magic:
            return ending
    what = f"{name} is none that is read here: {len(content):,} bytes"
    fix = "send a PNG, JPEG, WebP, GIF or BMP picture, or an MP4, MOV, MKV, WebM or AVI film"
    raise ConfigError(what, "its first bytes say what it is", fix)


def write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> dict[str, Path]:
    """Writes what was sent under names of its settings; returns where.

    Raises:
        ConfigError: If one is no picture, or film, of a known kind.
    """
    files = {}
    for name, content in pictures.items():
        if name not in settings_of(PICTURE):
            raise ConfigError(f"{name} was sent as a file", "it is no picture", "give its value")
        files[name] = folder / f"{name}{ending_of(name, content)}"
        files[name].write_bytes(content)
    return files


def without(folder: Path, error: JvdmError) -> JvdmError:
    """Returns an error that does not tell where the server keeps its files."""
    parts = (getattr(error, name).replace(f"{folder}/", "") for name in ("what", "why", "fix"))
    told = type(error).__new__(type(error))
    JvdmError.__init__(told, *parts)
    return told


def write_request(folder: Path, client: str, created: float, request: Request) -> None:
    """Writes what was asked for, so that another process can do it if this one cannot."""
    names = [field.name for field in dataclasses.fields(Settings)]
    asked = {name: getattr(request, name) for name in names}
    pictures = {name: asked[name] and asked[name].name for name in settings_of(PICTURE)}
    data = {"client": client, "created": created, "settings": {**asked, **pictures}}
    write_text(folder / _REQUEST, json.dumps(data))


def read_request(folder: Path) -> tuple[str, float, Request]:
    """Reads client, time and request of a job.

    Raises:
        ConfigError: If the file is missing or broken.
    """
    data = read_json(folder / _REQUEST, "request")
    try:
        settings = dict(data["settings"])
        check_names(settings)
        for name in settings_of(PICTURE):
            settings[name] = settings.get(name) and folder / Path(settings[name]).name
        return str(data["client"]), float(data["created"]), Request(**settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / _REQUEST} is no request", repr(error), "remove it") from error


def write_status(task: Task) -> None:
    """Writes how a job ended."""
    write_text(task.folder / _STATUS, json.dumps(dataclasses.asdict(task.status)))


def read_status(folder: Path) -> Status | None:
    """Reads how a job ended; None if it did not.

    Raises:
        ConfigError: If the file is broken.
    """
    if not os.path.isfile(folder / _STATUS):
        return None
    return made_of(Status, read_json(folder / _STATUS, "status"), folder / _STATUS)


def folders(root: Path) -> Iterator[Path]:
    """Yields the folders of jobs that an earlier process left, the oldest first."""
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    yield from sorted(found, key=lambda path: path.stat().st_mtime)


def size_bytes(folder: Path) -> int:
    """Returns the bytes of the files of a job."""
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def remove(folder: Path) -> None:
    """Removes the folder of a job, as far as it goes."""
    shutil.rmtree(folder, ignore_errors=True)
