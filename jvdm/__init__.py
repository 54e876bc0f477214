"""Video diffusion transformers in JAX for TPU and GPU.

    import jvdm
    pipe = jvdm.load()
    video = pipe("a large red ball rolls to the left", seed=0)
    video.save("ball.mp4")

The same with the smallest model that comes with jvdm:

    >>> import jvdm
    >>> pipe = jvdm.load("nano", dtype="float32", progress=False)
    >>> pipe("a red ball rests", seed=0, num_inference_steps=2, progress=False)
    Video(9 frames, 64x64, 6 fps)

Public names are imported on first use: `import jvdm` itself loads nothing, not even JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jvdm.diagnosis import doctor
    from jvdm.errors import (
        CheckpointError,
        ConfigError,
        DeviceMemoryError,
        JvdmError,
        NumericsError,
        Preempted,
        ShapeError,
        WeightsError,
    )
    from jvdm.pipeline import Pipeline, load, with_strengths
    from jvdm.video import Video

    __version__: str

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceMemoryError",
    "JvdmError",
    "NumericsError",
    "Pipeline",
    "Preempted",
    "ShapeError",
    "Video",
    "WeightsError",
    "__version__",
    "doctor",
    "load",
    "with_strengths",
]

_HOMES = {
    "Pipeline": "jvdm.pipeline",
    "Video": "jvdm.video",
    "doctor": "jvdm.diagnosis",
    "load": "jvdm.pipeline",
    "with_strengths": "jvdm.pipeline",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'jvdm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "jvdm.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("jvdm")
    except metadata.PackageNotFoundError:
        return "0+checkout"
