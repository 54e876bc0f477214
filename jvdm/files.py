"""Files that appear whole or not at all, and names that overwrite nothing."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jvdm.errors import ConfigError

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
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    (folder / ".probe").unlink()


def unused_stem(folder: Path, stem: str, suffixes: Sequence[str]) -> str:
    """Returns `stem`, or `stem-2`, `stem-3`, ... such that no listed file exists.

    Args:
        folder: Where the files will be.
        stem: Preferred name without suffix.
        suffixes: All endings that will be written, each with its dot.
    """
    candidate, count = stem, 1
    while any((folder / f"{candidate}{suffix}").exists() for suffix in suffixes):
        count += 1
        candidate = f"{stem}-{count}"
    return candidate


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
