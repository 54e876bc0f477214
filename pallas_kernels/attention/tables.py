"""Tile sizes by kernel and device: data in `tiles.json`, which `tune.py` beside it writes.

`PALLAS_KERNELS_TILES` names another file, which is then read in its place.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "PALLAS_KERNELS_TILES"
PACKAGED = Path(__file__).with_name("tiles.json")
_MEND = f"`jvdm bench tune` writes one, and without {VARIABLE} the package's own serves"


class Entry(NamedTuple):
    """The tile sizes of a pass.

    Attributes:
        sizes: Numbers by name.
        device: The documented device whose sizes they are.
    """

    sizes: dict[str, int]
    device: str


def path() -> Path:
    """Returns the file of the tables."""
    return Path(os.environ.get(VARIABLE) or PACKAGED)


@functools.cache
def tables(file: Path) -> dict[str, Any]:
    """Returns sizes by kernel, device, pass and blocks; `from` says how a device's were found.

    Raises:
        ValueError: If the file is not there, or none of tables.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as tables of tiles: {error}; {_MEND}") from error
    if not isinstance(found, dict) or not {"mosaic_gpu", "pallas_tpu"} <= found.keys():
        raise ValueError(f"{file} has no tables of mosaic_gpu and pallas_tpu; {_MEND}")
    return found


def documented(kernel: str, device: str, file: Path | None = None) -> str:
    """Returns a device if it is in the tables of a kernel, else the last that is: the newest."""
    devices = tables(file or path())[kernel]
    return device if device in devices else list(devices)[-1]


def entry(kernel: str, device: str, part: str, blocks: str) -> Entry:
    """Returns the tile sizes of a pass for blocks of a size.

    Args:
        kernel: As implementations are called.
        device: What it runs on; one that is not documented has the sizes of the newest.
        part: The pass.
        blocks: As in the tables: all sizes that matter, joined by `x`. Where there is but one,
            the largest that is documented up to it serves, else the smallest. What a file of the
            user's lacks is as the package has it.

    Raises:
        KeyError: If neither knows such blocks.
    """
    near = documented(kernel, device)
    known = tables(path())[kernel][near][part]
    if blocks not in known and blocks.isdecimal():
        sizes = sorted(map(int, known))
        blocks = str(max((n for n in sizes if n <= int(blocks)), default=sizes[0]))
    if blocks not in known:  # by a file that is older than such blocks
        known = tables(PACKAGED)[kernel][documented(kernel, near, PACKAGED)][part]
    return Entry(known[blocks], near)


def about(kernel: str, device: str) -> str:
    """Says whose tile sizes a device has, if not its own; empty if they are its own."""
    near = documented(kernel, device)
    return "" if near == device else f"its tiles are those of {near}: it has none for {device}"


def write(file: Path, kernel: str, device: str, found: dict[str, Any]) -> None:
    """Puts what was found for a device into a file of tables, which is made if there is none.

    What was not looked for stays as it is, or as it serves until now.

    Raises:
        ValueError: As `tables`.
    """
    known = json.loads(json.dumps(tables(file if file.exists() else PACKAGED)))
    before = known[kernel].get(device) or known[kernel][list(known[kernel])[-1]]
    parts = {name: before[name] | x for name, x in found.items() if isinstance(x, dict)}
    known[kernel][device] = before | found | parts
    file.write_text(json.dumps(known, indent=1) + "\n")
    tables.cache_clear()
