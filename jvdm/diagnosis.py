"""The verb `doctor`: what this machine can do, what is wrong, and how to mend it.

Imports nothing of jvdm that needs JAX before it has looked at the versions, so that it
also works where JAX is missing, broken or too old.
"""

import dataclasses
import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from jvdm import __version__
from jvdm.errors import ConfigError, JvdmError

GENERATION_NEEDS = ("av", "flax", "jax", "jaxlib", "jaxtyping", "ml_dtypes", "numpy", "safetensors")
PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "jax-rocm7-plugin", "jax-rocm60-plugin")
LIBTPU = "libtpu"
SHIPPED = "tiny_t2v"
LITTLE_MEMORY = 2e9  # bytes; JAX, the shipped model and one default clip stay below
LITTLE_DISK = 1e9  # bytes; compiled programs and videos

State = Literal["ok", "warning", "failed"]


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """The doctor looks at everything; there is nothing to choose."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `failed` if generation cannot run because of it.
        found: What there is.
        fix: What to do about it; empty where all is well.
        data: The same as JSON data, where there is more to say.
    """

    state: State
    found: str
    fix: str = ""
    data: Any = None


def doctor() -> None:
    """Prints what this machine can do, what is wrong, and how to mend it; for notebooks."""
    print(text(run(DoctorOptions())))


def run(options: DoctorOptions) -> dict[str, Any]:
    """Looks at everything; a check that breaks is a finding, not an error.

    Returns:
        `ok` (whether generation can run) and, per check, its finding.
    """
    findings = {name: _attempt(check) for name, check in CHECKS.items()}
    ok = all(finding.state != "failed" for finding in findings.values())
    return {
        "ok": ok,
        "checks": {name: dataclasses.asdict(finding) for name, finding in findings.items()},
    }


def text(result: dict[str, Any]) -> str:
    """Returns the findings as a table."""
    lines = []
    for name, finding in result["checks"].items():
        lines.append(f"{finding['state']:<8} {name:<12} {finding['found']}")
        if finding["fix"]:
            lines.append(f"{'':<21} -> {finding['fix']}")
    lines.append("generation can run" if result["ok"] else "generation cannot run: see `failed`")
    return "\n".join(lines)


def _attempt(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # whatever is wrong with this machine is what we want to tell
        if isinstance(error, JvdmError):
            return Finding("failed", "; ".join(filter(None, (error.what, error.why))), error.fix)
        first_line = (str(error).splitlines() or [""])[0]
        return Finding("failed", f"{type(error).__name__}: {first_line}")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _check_system() -> Finding:
    """Says what is running."""
    found = f"jvdm {__version__}, Python {platform.python_version()}, {platform.platform()}"
    return Finding("ok", found)


def _check_packages() -> Finding:
    """Compares what is installed with what this version of jvdm asks for."""
    versions: dict[str, str | None] = {name: _installed(name) for name in GENERATION_NEEDS}
    missing, old = [], []
    for line in metadata.requires("jvdm") or () if _installed("jvdm") else ():
        wanted = re.match(r"([\w.-]+)(?:\[.*?\])?\s*>=\s*([\d.]+)\s*$", line)
        if wanted is None:  # an extra
            continue
        name, least = wanted.groups()
        versions[name] = have = _installed(name)
        if have is not None and _numbers(have) < _numbers(least):
            old.append(f"{name} {have} (needs {least})")
    missing = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax", "av"))
    if missing or old:
        found += f"; missing: {', '.join(missing) or 'none'}; too old: {', '.join(old) or 'none'}"
        blocking = old or set(missing) & set(GENERATION_NEEDS)
        state: State = "failed" if blocking else "warning"
        return Finding(state, found, "pip install --upgrade jvdm", versions)
    return Finding("ok", found, data=versions)


def _check_jax() -> Finding:
    """Sees whether the loaded JAX is the installed one, and whether its parts fit."""
    installed, jaxlib = _installed("jax"), _installed("jaxlib")
    loaded = getattr(sys.modules.get("jax"), "__version__", installed)
    if loaded != installed:
        return Finding(
            "failed",
            f"jax {loaded} is loaded, but {installed} is installed",
            "restart the runtime (Jupyter: Kernel > Restart), then import jvdm first",
        )
    plugins = {name: version for name in PLUGINS if (version := _installed(name))}
    wrong = {name: version for name, version in plugins.items() if version != jaxlib}
    data = {"jax": installed, "jaxlib": jaxlib, LIBTPU: _installed(LIBTPU), **plugins}
    if wrong:
        names = ", ".join(f"{name} {version}" for name, version in wrong.items())
        extra = "cuda13" if "cuda13" in names else "cuda12"
        fix = f'pip install --upgrade "jvdm[{extra}]", or pip uninstall {" ".join(wrong)}'
        return Finding("failed", f"{names} does not fit jaxlib {jaxlib}", fix, data)
    import jax

    found = f"jax {jax.__version__} with {', '.join(plugins) or 'no GPU plugin'}"
    return Finding("ok", found, data=data)


def _check_devices() -> Finding:
    """Lists the devices and lets one compute."""
    import jax
    import jax.numpy as jnp

    devices = [
        {
            "platform": device.platform,
            "kind": device.device_kind,
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        }
        for device in jax.local_devices()
    ]
    total = float(jnp.sum(jnp.ones((8, 8)) @ jnp.ones((8, 8))))
    if total != 512:
        return Finding("failed", f"8x8 ones times ones sums to {total}, not 512", data=devices)
    kind, memory = devices[0]["kind"], devices[0]["memory_bytes"]
    found = f"{len(devices)} x {kind}" + (f", {memory / 1e9:.1f} GB each" if memory else "")
    idle = _idle_accelerator() if devices[0]["platform"] == "cpu" else None
    if idle and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        name, extras = idle
        fix = f"pip install {extras}; or set JAX_PLATFORMS=cpu if that is meant"
        return Finding("warning", f"{found}, though there is {name}", fix, devices)
    return Finding("ok", found, data=devices)


def _idle_accelerator() -> tuple[str, str] | None:
    """Returns an accelerator that this machine seems to have, and the extra for it."""
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        return "an NVIDIA GPU", '"jvdm[cuda13]" (or cuda12 for older drivers)'
    if list(Path("/dev").glob("accel*")):
        return "a TPU", '"jvdm[tpu]"'
    return None


def _check_video() -> Finding:
    """Encodes one frame as H.264."""
    import av
    import numpy as np

    from jvdm.video import Video

    with tempfile.TemporaryDirectory() as folder:
        frame = np.zeros((1, 16, 16, 3), np.uint8)
        size = Video(frame, fps=8.0).save(Path(folder) / "probe.mp4").stat().st_size
    library = ".".join(map(str, av.library_versions["libavcodec"]))
    found = f"H.264 encodes (av {av.__version__}, libavcodec {library}, {size} bytes for a frame)"
    return Finding("ok", found)


def _check_weights() -> Finding:
    """Reads the manifest and the headers of the shipped weights."""
    folder_module = importlib.import_module("jvdm.weights.folder")
    safetensors = importlib.import_module("jvdm.weights.safetensors")
    folder = folder_module.embedded(SHIPPED)
    folder_module.read_manifest(folder)
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        safetensors.read_header(path)
    size = sum(path.stat().st_size for path in files)
    found = f"{SHIPPED}: {len(files)} files, {size / 1e6:.1f} MB"
    return Finding("ok", found, data={path.name: path.stat().st_size for path in files})


def _check_cache() -> Finding:
    """Writes into the folder of compiled programs; without it every start compiles."""
    from jvdm.cache import compilation_folder
    from jvdm.files import probe_writable

    folder = compilation_folder()
    try:
        probe_writable(folder)
    except ConfigError as error:
        fix = "set JVDM_HOME to a folder that can be written, or every start compiles anew"
        return Finding("warning", f"{error.what}; {error.why}", fix)
    return Finding("ok", str(folder))


def _check_memory() -> Finding:
    """Looks at free host memory and at the disk of the current folder."""
    memory, disk = _free_memory(), shutil.disk_usage(".").free
    known = f"{memory / 1e9:.1f} GB" if memory is not None else "an unknown amount"
    found = f"{known} of memory and {disk / 1e9:.1f} GB of disk are free"
    data = {"free_memory_bytes": memory, "free_disk_bytes": disk, "cpus": os.cpu_count()}
    if memory is not None and memory < LITTLE_MEMORY:
        return Finding("warning", found, "close other programs, or make smaller videos", data)
    if disk < LITTLE_DISK:
        return Finding("warning", found, "free some disk space", data)
    return Finding("ok", found, data=data)


def _free_memory() -> int | None:
    """Returns the bytes that a new program can use, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    table = dict(line.split(":", 1) for line in lines)
    return int(table["MemAvailable"].split()[0]) * 1024


CHECKS: dict[str, Callable[[], Finding]] = {
    "system": _check_system,
    "packages": _check_packages,
    "jax": _check_jax,
    "devices": _check_devices,
    "video": _check_video,
    "weights": _check_weights,
    "cache": _check_cache,
    "memory": _check_memory,
}
