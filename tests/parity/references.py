"""Small published networks with weights that anyone can make again, and what came of them.

`references/NAME.json` holds what `config.json` of a network says and the shapes of its arrays, and
`references/NAME.npz` what the reference implementation made of the inputs; the weights are drawn
here. So CI, where the implementation is not installed, compares with it all the same, and
`tests/parity` says where it is that the stored numbers are its own.
"""

import functools
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "references"
GAINS = ("norm", "gamma")


def drawn(shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns weights of these shapes by name, none of them 0 or 1, the same anywhere.

    The generator is NumPy's legacy one, whose numbers never change.
    """
    rng, made = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        noise = rng.standard_normal(shape).astype(np.float32)
        wide = len(shape) > 1 and name.split(".")[-1] == "weight"
        is_gain = any(gain in name for gain in GAINS) and name.endswith(("weight", "gamma"))
        scale = 1.0 / np.sqrt(np.prod(shape[1:])) if wide else 0.1
        made[name] = np.asarray(np.float32(is_gain and not wide) + np.float32(scale) * noise)
    return made


def inputs(*shapes, seed: int = 1) -> list[np.ndarray]:
    """Returns normal numbers of these shapes, the same anywhere."""
    rng = np.random.RandomState(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


class Reference:
    """A stored reference: `config`, `weights` by published name, and `outputs` by name."""

    def __init__(self, name: str):
        stored = json.loads((FOLDER / f"{name}.json").read_text())
        self.config, self.shapes = stored["config"], stored["shapes"]
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.outputs = dict(arrays)

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        return drawn(self.shapes)


def store(name: str, config, shapes, outputs) -> None:
    """Writes a reference, for `Reference`."""
    FOLDER.mkdir(exist_ok=True)
    described = {"config": config, "shapes": {key: list(shapes[key]) for key in sorted(shapes)}}
    (FOLDER / f"{name}.json").write_text(json.dumps(described, indent=0) + "\n")
    np.savez_compressed(FOLDER / f"{name}.npz", **outputs)


def assert_stored(name: str, config, shapes, outputs) -> None:
    """Fails if what an implementation made is not what is stored."""
    stored = Reference(name)
    assert stored.shapes == {key: list(shape) for key, shape in shapes.items()}
    assert stored.config == config
    for key, output in outputs.items():
        if name.endswith("in_bfloat16"):  # whose rounding is that of a processor
            assert rms(output, stored.outputs[key]) < 0.05
        else:
            np.testing.assert_allclose(output, stored.outputs[key], rtol=1e-4, atol=1e-5)


def off(actual, expected) -> float:
    """Returns the largest difference, in deviations of what is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / expected.std())


def rms(actual, expected) -> float:
    """Returns the root mean square difference, in deviations of what is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.sqrt(np.mean((actual - expected) ** 2)) / expected.std())
