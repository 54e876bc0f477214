"""Files that appear whole or not at all, and names that overwrite nothing."""

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from jvdm.errors import ConfigError

MAX_STEM = 200  # bytes; with seed, counter and suffix file systems allow 255
SLUG_LENGTH = 60  # leaves room for seed, counter and suffix in 255-byte file systems


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path` and renames it to `path` at the end.

    A crash, a full disk or an interruption leaves the old file (or none) and
    never half a file. The temporary name keeps the suffix of `path`, because
    encoders choose their format by it.

    Raises:
        ConfigError: If the file cannot be written there.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        permissions = temporary.stat().st_mode  # what the umask gives
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(permissions)  # some libraries write files that only the owner may read
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder` that gets its name at the end; after an error none is left.

    Raises:
        OSError: If it cannot be made, or there is one of that name by then.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def unwritable(path: Path, error: OSError) -> ConfigError:
    """Returns the error for a file that the system refused to write."""
    reasons = {
        errno.ENOSPC: ("the disk is full", "free some space or choose another disk"),
        errno.EDQUOT: ("the disk quota is used up", "free some space or choose another disk"),
    }
    advice = "choose another folder with --output or --workdir"
    why, fix = reasons.get(error.errno or 0, (error.strerror or str(error), advice))
    return ConfigError(f"{path} cannot be written", why, fix)


def probe_writable(folder: Path) -> None:
    """Makes `folder` and writes one byte into it, so that failure comes first.

    Raises:
        ConfigError: If nothing can be written there.
    """
    with replacing(folder / ".probe") as temporary:
        temporary.write_bytes(b"\0")
    (folder / ".probe").unlink(missing_ok=True)  # another run may have probed meanwhile


@contextlib.contextmanager
def reserving(folder: Path, stem: str, suffixes: Collection[str]) -> Iterator[str]:
    """Gives `stem`, or `stem-2`, `stem-3`, ... such that no listed file exists.

    No other run, in this process or another, gets the name until the end.

    Args:
        folder: Where the files will be; it is made.
        stem: Preferred name without suffix.
        suffixes: All endings that will be written, each with its dot.

    Raises:
        ConfigError: If the name is too long, or nothing can be written there.
    """
    if len(os.fsencode(stem)) > MAX_STEM:
        what = f"the name {stem[:20]}... has {len(os.fsencode(stem))} bytes"
        raise ConfigError(what, f"names of {MAX_STEM} are written", "use a shorter one")
    for count in itertools.count(1):
        name = stem if count == 1 else f"{stem}-{count}"
        marker = folder / f".{name}.reserved"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            marker.open("x").close()
        except FileExistsError as error:
            if not folder.is_dir():
                raise unwritable(folder, error) from error
            continue
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            if not any((folder / f"{name}{suffix}").exists() for suffix in suffixes):
                yield name
                return
        finally:
            marker.unlink(missing_ok=True)


def slug(text: str) -> str:
    """Returns a file name made of the words of `text`; `video` if there are none.

    Example:
        >>> slug("A large red ball rolls; the camera pans right.")
        'a_large_red_ball_rolls_the_camera_pans_right'
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = ""
    for word in words:
        if len(name) + 1 + len(word) > SLUG_LENGTH:
            break
        name = f"{name}_{word}" if name else word
    return name or "video"
