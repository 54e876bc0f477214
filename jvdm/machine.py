"""What this machine has left: memory of the host and of a device."""

import contextlib
import contextvars
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")  # limits of a container
PROCESS = Path("/proc/self")  # and of this process: `ulimit -v`
_NO_MEMORY = re.compile(
    "RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc|[Cc]annot allocate|[Ff]ailed to allocate"
)


_idle: contextvars.ContextVar[tuple[int, int]] = contextvars.ContextVar("idle", default=(0, 0))


@contextlib.contextmanager
def as_when_idle(host: int | None, device: int | None) -> Iterator[None]:
    """Counts as free, for who asks inside, what was free before other work of this process began.

    Args:
        host: Bytes that were free then, from `free_memory`.
        device: The same of a device.
    """
    token = _idle.set((host or 0, device or 0))
    try:
        yield
    finally:
        _idle.reset(token)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device ran out of memory."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def free_memory() -> int | None:
    """Returns the bytes that a new program can use, None where the system does not say."""
    table, free = Path("/proc/meminfo"), []
    if table.exists() and (found := re.search(r"MemAvailable: *(\d+)", table.read_text())):
        free.append(int(found[1]) * 1024)
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits = [CGROUP / f"memory.{name}" for name in ("max", "current")]
    values = [path.read_text().strip() if path.is_file() else "max" for path in limits]
    if all(map(str.isdecimal, values)):
        free.append(max(int(values[0]) - int(values[1]), 0))
    own = [path for path in (PROCESS / "limits", PROCESS / "status") if path.is_file()]
    said = "".join(path.read_text() for path in own)
    if limit := re.search(r"Max address space\s+(\d+)", said):
        used = re.search(r"VmSize:\s*(\d+)", said)
        free.append(max(int(limit[1]) - 1024 * int(used[1] if used else 0), 0))
    return max(min(free), _idle.get()[0]) if free else None


def device_memory(device: Any) -> int | None:
    """Returns the bytes of a device of JAX, used or not; those that the host has free for a CPU."""
    if device.platform == "cpu":
        return free_memory()
    return (device.memory_stats() or {}).get("bytes_limit")


def free_device_memory(device: Any) -> int | None:
    """Returns the bytes that are free on a device of JAX; those of the host for a CPU."""
    if device.platform == "cpu":
        return free_memory()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return max(stats["bytes_limit"] - stats["bytes_in_use"], _idle.get()[1])
