"""Diffusers reads the file that training writes; `python -m tests.parity.test_lora` stores."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.parity import references
from tests.parity.lora_file import write_file
from tests.parity.references import inputs

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")
diffusers = pytest.importorskip("diffusers", reason="this one needs Diffusers")
pytest.importorskip("peft", reason="Diffusers needs PEFT for low-rank changes")

pytestmark = pytest.mark.parity


def made():
    """Returns configuration, shapes and what the changed transformer makes of the inputs."""
    stored = references.Reference("wan_transformer")
    network = diffusers.WanTransformer3DModel(**stored.config).eval()
    weights = {name: torch.from_numpy(array) for name, array in stored.weights.items()}
    network.load_state_dict(weights, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder) / "lora.safetensors")
        network.load_lora_adapter(str(path), prefix="transformer")
    x, text = map(torch.from_numpy, inputs((2, 4, 3, 8, 12), (2, 7, 32)))
    with torch.no_grad():
        told = {"timestep": torch.tensor([500.0, 200.0]), "encoder_hidden_states": text}
        output = network(hidden_states=x, **told).sample
    return stored.config, stored.shapes, {"clip": np.asarray(output)}


def test_the_stored_numbers_are_those_of_diffusers():
    references.assert_stored("wan_lora", *made())


if __name__ == "__main__":
    references.store("wan_lora", *made())
