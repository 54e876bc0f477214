"""The verb `doctor`: what this machine can do, what is wrong, and how to mend it.

Imports nothing of jvdm that needs JAX before it has looked at the versions, so that it
also works where JAX is missing, broken or too old.
"""

import dataclasses
import os
import platform
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from jvdm import __version__
from jvdm.errors import ConfigError, DeviceMemoryError, JvdmError
from jvdm.machine import free_memory, is_out_of_memory

GENERATION_NEEDS = ("av", "flax", "jax", "jaxlib", "jaxtyping", "ml_dtypes", "numpy", "safetensors")
PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "jax-rocm7-plugin", "jax-rocm60-plugin")
RESTARTS = {
    "Colab": "Runtime > Restart session",
    "Kaggle": "Run > Restart & clear cell outputs",
    "Jupyter": "Kernel > Restart",
}
"""Notebook hosts, and where each has what begins a new process."""
SHIPPED = "tiny_t2v"
LITTLE_MEMORY = 2e9  # bytes; JAX, the shipped model and one default clip stay below
LITTLE_DISK = 1e9  # bytes; compiled programs and videos


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """The doctor looks at everything; there is nothing to choose."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `failed` if generation cannot run because of it."""

    state: Literal["ok", "warning", "failed"]
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
    findings = {name: dataclasses.asdict(_attempt(check)) for name, check in CHECKS.items()}
    ok = all(finding["state"] != "failed" for finding in findings.values())
    return {"ok": ok, "checks": findings}


def text(result: dict[str, Any]) -> str:
    """Returns the findings as a table."""
    lines = []
    for name, finding in result["checks"].items():
        lines.append(f"{finding['state']:<8} {name:<12} {finding['found']}")
        if finding["fix"]:
            lines.append(f"{'':<21} -> {finding['fix']}")
    lines.append("generation can run" if result["ok"] else "generation cannot run: see `failed`")
    return "\n".join(lines)


def understood(error: BaseException) -> JvdmError | None:
    """Returns what an error of JAX or of the machine means; None if that is not known.

    Known are a JAX that is missing, does not fit or finds no device, and too little memory.
    """
    said = str(error).partition("\n")[0]
    if is_out_of_memory(error):
        fix = "make fewer videos at once, fewer frames or smaller ones, or close other programs"
        return DeviceMemoryError("the memory is too small for this", said, fix)
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    starting = bool(files) and re.search(r"xla_bridge\.py$|[/\\]jax(lib)?[/\\].*version", files[-1])
    named = isinstance(error, ImportError) and (error.name or "").split(".")[0] in GENERATION_NEEDS
    if not (starting or named or re.search(r"jaxlib .*(version|installed)", said)):
        return None
    asked = os.environ.get("JAX_PLATFORMS")
    why = f"JAX_PLATFORMS is {asked!r}" if starting and asked else ""
    what = f"JAX cannot start: {said or 'it finds no device'}"
    return ConfigError(what, why, "jvdm doctor says what is wrong and how to mend it")


def _attempt(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except JvdmError as error:
        return Finding("failed", "; ".join(filter(None, (error.what, error.why))), error.fix)
    except Exception as error:  # whatever is wrong with this machine is what we want to tell
        return Finding("failed", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _installed(package: str) -> str | None:
    return next((found.version for found in metadata.distributions(name=package)), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _host() -> str | None:
    """Returns the notebook host that this process runs on; None outside of notebooks."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # its images are made from those of Colab
        return "Kaggle"
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return "Colab"
    return "Jupyter" if "ipykernel" in sys.modules else None


def _install(what: str) -> str:
    """Returns the line that installs something here, with the restart that notebooks need."""
    host = _host()
    if host is None:
        return f"pip install --upgrade {what}"
    return f"%pip install -q --upgrade {what}, then {RESTARTS[host]}"


def _with_extra(package: str) -> str:
    """Returns the package with the extra for the accelerator whose plugin is installed.

    Images of Colab have libtpu beside the plugin for GPUs: where no TPU is, it comes last.
    """
    extras = {"jax-cuda13-plugin": "cuda13", "jax-cuda12-plugin": "cuda12"}
    extras = {"libtpu": "tpu"} | extras if _has_tpu() else extras | {"libtpu": "tpu"}
    found = [extra for plugin, extra in extras.items() if _installed(plugin)]
    return f"{package}[{found[0]}]" if found else package


def _system() -> Finding:
    host = _host()
    python = f"Python {platform.python_version()}, {platform.platform()}"
    return Finding("ok", f"jvdm {__version__}, {python}" + (f", {host}" if host else ""))


def _packages() -> Finding:
    """Compares what is installed with what this version of jvdm asks for."""
    lines = metadata.requires("jvdm") or () if _installed("jvdm") else ()
    lowest = r"^([\w.-]+)(?:\[.*?\])? *>= *([\d.]+) *$"  # an extra has another end
    least: dict[str, str] = dict.fromkeys(GENERATION_NEEDS, "0")
    least |= dict(re.findall(lowest, "\n".join(lines), re.MULTILINE))
    versions = {name: _installed(name) for name in least}
    missing = [name for name, have in versions.items() if have is None]
    there = {name: have for name, have in versions.items() if have is not None}
    old = [name for name, have in there.items() if _numbers(have) < _numbers(least[name])]
    found = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax", "av"))
    if not missing and not old:
        return Finding("ok", found, data=versions)
    too_old = ", ".join(f"{name} {there[name]} (needs {least[name]})" for name in old)
    found += f"; missing: {', '.join(missing) or 'none'}; too old: {too_old or 'none'}"
    state = "failed" if old or set(missing) & set(GENERATION_NEEDS) else "warning"
    return Finding(state, found, _install(f'"{_with_extra("jvdm")}"'), versions)


def _jax() -> Finding:
    """Sees whether what is loaded is what is installed, and whether the parts of JAX fit."""
    data = {name: _installed(name) for name in ("jax", "jaxlib", "libtpu", "numpy", *PLUGINS)}
    for name in ("jax", "jaxlib", "numpy"):  # a new jax brings a new numpy
        loaded = getattr(sys.modules.get(name), "__version__", data[name])
        if loaded != data[name]:
            found = f"{name} {loaded} is loaded, but {data[name]} is installed"
            restart = RESTARTS.get(_host() or "", "start Python again")
            return Finding("failed", found, f"{restart}: imports last as long as a process", data)
    plugins = [name for name in PLUGINS if data[name]]
    wrong = [name for name in plugins if data[name] != data["jaxlib"]]
    if wrong:
        names = ", ".join(f"{name} {data[name]}" for name in wrong)
        line = _install('"jvdm[cuda13]"' if "cuda13" in names else '"jvdm[cuda12]"')
        fix = f"{line}, or pip uninstall {' '.join(wrong)}"
        return Finding("failed", f"{names} does not fit jaxlib {data['jaxlib']}", fix, data)
    if unfit := _unfit(data):
        found = f"{', '.join(unfit)}: the parts of jax {data['jax']} do not fit each other"
        if all(part.startswith("libtpu") for part in unfit):
            fix = _install(f'"jax[tpu]=={data["jax"]}"')
            if _has_tpu():
                return Finding("failed", found, fix, data)
            found += "; only `jvdm plan` for TPUs loads libtpu here, since no TPU is seen"
            return Finding("warning", found, fix, data)
        return Finding("failed", found, _install(f'"{_with_extra("jax")}=={data["jax"]}"'), data)
    import jax

    found = f"jax {jax.__version__} with {', '.join(plugins) or 'no GPU plugin'}"
    return Finding("ok", found, data=data)


def _unfit(versions: dict[str, str | None]) -> list[str]:
    """Returns the versions of jaxlib and libtpu that the installed jax does not ask for."""
    unfit = []
    for line in _asked_by_jax():
        said, _, extra = line.partition(";")
        [(name, needs)] = re.findall(r"^([\w-]+)(.*)$", said.strip())
        have = versions.get(name)
        if name not in ("jaxlib", "libtpu") or have is None:
            continue
        if extra.strip() and not (name == "libtpu" and '"tpu"' in extra):
            continue
        if not all(_meets(have, need.strip()) for need in needs.split(",") if need.strip()):
            unfit.append(f"{name} {have} (jax asks for {needs.strip()})")
    return unfit


def _asked_by_jax() -> list[str]:
    return list(metadata.requires("jax") or ()) if _installed("jax") else []


def _meets(version: str, need: str) -> bool:
    """Whether a version is one of `==0.0.42.*`, `>=0.10.1` or `<=0.10.2`."""
    [(sign, wanted)] = re.findall(r"^([<>=!~]+) *(.*)$", need)
    have, bound = _numbers(version), _numbers(wanted)
    if sign == "==":
        return have[: len(bound)] == bound
    return {"<=": have <= bound, ">=": have >= bound, "<": have < bound}.get(sign, True)


def _devices() -> Finding:
    """Lists the devices and lets one compute."""
    import jax
    import jax.numpy as jnp

    asked = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except Exception as error:  # an assertion in some versions
        if not asked:
            raise
        why = str(error).partition("\n")[0]
        extra = "tpu" if "tpu" in asked else "cuda13"
        fix = f'unset JAX_PLATFORMS, or pip install "jvdm[{extra}]"'
        found = f"JAX_PLATFORMS is {asked!r}, which finds no device"
        return Finding("failed", "; ".join(filter(None, (found, why))), fix)
    names = ("platform", "kind", "memory_bytes")
    devices = [
        (device.platform, device.device_kind, (device.memory_stats() or {}).get("bytes_limit"))
        for device in jax.local_devices()
    ]
    data = [dict(zip(names, device, strict=True)) for device in devices]
    total = float(jnp.sum(jnp.ones((8, 8)) @ jnp.ones((8, 8))))
    if total != 512:
        return Finding("failed", f"8x8 ones times ones sums to {total}, not 512", data=data)
    on, kind, memory = devices[0]
    found = f"{len(devices)} x {kind}" + (f", {memory / 1e9:.1f} GB each" if memory else "")
    chosen = on != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", "")
    if chosen or not (idle := _idle_accelerator()):
        return Finding("ok", found, data=data)
    fix = f"{_install(idle[1])}; or set JAX_PLATFORMS=cpu if that is meant"
    return Finding("warning", f"{found}, though there is {idle[0]}", fix, data)


def _idle_accelerator() -> tuple[str, str] | None:
    """Returns an accelerator that this machine seems to have, and the extra for it."""
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        return "an NVIDIA GPU", '"jvdm[cuda13]" (or cuda12 for older drivers)'
    return ("a TPU", '"jvdm[tpu]"') if _tpu_chips() else None


def _tpu_chips() -> list[Path]:
    return [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]


def _has_tpu() -> bool:
    """Whether there is a TPU, or JAX is told to use one."""
    return bool(_tpu_chips()) or "tpu" in os.environ.get("JAX_PLATFORMS", "")


def _video() -> Finding:
    """Encodes one frame as H.264."""
    import av
    import numpy as np

    from jvdm.video import Video

    with tempfile.TemporaryDirectory() as folder:
        frame = np.zeros((1, 16, 16, 3), np.uint8)
        size = Video(frame, fps=8.0).save(Path(folder) / "probe.mp4").stat().st_size
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    found = f"H.264 encodes (av {av.__version__}, libavcodec {codec}, {size} bytes for a frame)"
    return Finding("ok", found)


def _weights() -> Finding:
    """Reads the manifest and the headers of the shipped weights."""
    from jvdm.weights import folder as weights
    from jvdm.weights import safetensors

    folder = weights.embedded(SHIPPED)
    weights.read_manifest(folder)
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        safetensors.read_header(path)
    sizes = {path.name: path.stat().st_size for path in files}
    found = f"{SHIPPED}: {len(files)} files, {sum(sizes.values()) / 1e6:.1f} MB"
    return Finding("ok", found, data=sizes)


def _cache() -> Finding:
    """Writes into the folder of compiled programs; without it every start compiles."""
    from jvdm.cache import compilation_folder
    from jvdm.files import probe_writable

    try:
        probe_writable(compilation_folder())
    except ConfigError as error:
        fix = "set JVDM_HOME to a folder that can be written, or every start compiles anew"
        return Finding("warning", f"{error.what}; {error.why}", fix)
    return Finding("ok", str(compilation_folder()))


def _memory() -> Finding:
    """Looks at free host memory and at the disk of the current folder."""
    memory, disk = free_memory(), shutil.disk_usage(".").free
    known = f"{memory / 1e9:.1f} GB" if memory is not None else "an unknown amount"
    found = f"{known} of memory and {disk / 1e9:.1f} GB of disk are free"
    data = {"free_memory_bytes": memory, "free_disk_bytes": disk, "cpus": os.cpu_count()}
    fix = "free some disk space" if disk < LITTLE_DISK else ""
    if memory is not None and memory < LITTLE_MEMORY:
        fix = "close other programs, or make smaller videos"
    return Finding("warning" if fix else "ok", found, fix, data)


_ALL = (_system, _packages, _jax, _devices, _video, _weights, _cache, _memory)
CHECKS = {check.__name__[1:]: check for check in _ALL}
