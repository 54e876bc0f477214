"""The trained reader on generated clips: loading it, looking, and what it says."""

from pathlib import Path

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Frames, PyTree
from jvdm.errors import WeightsError
from jvdm.evaluation.estimates import Measure
from jvdm.evaluation.measure import everywhere
from jvdm.evaluation.reader import NUM_FRAMES, RESOLUTION, Reader, Reading, attributes_right, shrink
from jvdm.weights import read_manifest, safetensors
from jvdm.world.scene import Facts


def load_reader(folder: str | Path, dtype: str = "bfloat16") -> tuple[Reader, PyTree]:
    """Reads the reader of a weights folder.

    Raises:
        WeightsError: If the folder holds no reader, or a broken one.
    """
    manifest = read_manifest(folder)
    if "reader" not in manifest.components:
        what = f"{folder} holds {', '.join(manifest.components)}"
        fix = "train one with `jvdm train configs/reader.py` and give its workdir/weights"
        raise WeightsError(what, "a reader is needed to judge what clips show", fix)
    reader = manifest.component("reader").clone(dtype=dtype)
    path, tree = manifest.parameters(folder, "reader")
    example = jnp.zeros((1, NUM_FRAMES, RESOLUTION, RESOLUTION, 3))
    expected = jax.eval_shape(lambda: reader.init(jax.random.key(0), example))["params"]
    safetensors.match(path, tree, expected)
    return reader, jax.tree.map(jnp.asarray, tree)


def read(reader: Reader, params: PyTree, frames: Frames) -> Reading:
    """Lets the trained reader look at clips of any length and size."""
    return reader.bind({"params": params})(shrink(jnp.clip(frames, 0.0, 1.0)))


def measure_reading(reading: Reading, facts: Facts) -> dict[str, Measure]:
    """What the trained reader says; "all" is colours, shapes and sizes of a whole clip."""
    right = {name: Measure(*pair) for name, pair in attributes_right(reading, facts).items()}
    looks = jnp.asarray(right["colors"].value) & _each(right["shape"]) & _each(right["size"])
    return {
        "reader colours": right["colors"],
        "reader shape": right["shape"],
        "reader size": right["size"],
        "reader all": everywhere(looks),
        "verb": Measure(right["verb"].value[:, 0], facts.active[:, 0]),
        "verbs": everywhere(_each(right["verb"])),
        "speed word": right["speed"],
        "camera": right["camera"],
    }


def _each(measure: Measure) -> Bool[Array, " B"]:
    """Right for every counted object of a clip."""
    return jnp.where(measure.counted, measure.value, True).all(-1)
