"""Diffusers reads the file that training writes; `python -m tests.parity.test_lora` stores."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.parity import references
from tests.parity.lora_file import write_file, write_ltx_file
from tests.parity.references import inputs

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")
diffusers = pytest.importorskip("diffusers", reason="this one needs Diffusers")
pytest.importorskip("peft", reason="Diffusers needs PEFT for low-rank changes")

pytestmark = pytest.mark.parity


def changed(name, network_class, write):
    """Returns a stored reference, and its network of Diffusers with the changes of a file."""
    stored = references.Reference(name)
    network = network_class(**stored.config).eval()
    weights = {name: torch.from_numpy(array) for name, array in stored.weights.items()}
    network.load_state_dict(weights, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "lora.safetensors")
        network.load_lora_adapter(str(path), prefix="transformer")
    return stored, network


def wan():
    """Returns configuration, shapes and what the changed transformer makes of the inputs."""
    stored, network = changed("wan_transformer", diffusers.WanTransformer3DModel, write_file)
    x, text = map(torch.from_numpy, inputs((2, 4, 3, 8, 12), (2, 7, 32)))
    with torch.no_grad():
        told = {"timestep": torch.tensor([500.0, 200.0]), "encoder_hidden_states": text}
        output = network(hidden_states=x, **told).sample
    return stored.config, stored.shapes, {"clip": np.asarray(output)}


def ltx():
    """Returns the same of LTX-Video, at a level for each clip."""
    kind = diffusers.LTXVideoTransformer3DModel
    stored, network = changed("ltx_transformer", kind, write_ltx_file)
    x, text = map(torch.from_numpy, inputs((2, 24, 8), (2, 7, 32)))
    mask, level = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]), torch.tensor([500.0, 200.0])
    sizes = {"num_frames": 3, "height": 2, "width": 4}
    scale = {"rope_interpolation_scale": (0.32, 32, 32)}
    with torch.no_grad():
        output = network(x, text, level, mask, **sizes, **scale).sample
    return stored.config, stored.shapes, {"clip": output.reshape(2, 3, 2, 4, 8).numpy()}


REFERENCES = {"wan_lora": wan, "ltx_lora": ltx}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_stored_numbers_are_those_of_diffusers(name):
    references.assert_stored(name, *REFERENCES[name]())


if __name__ == "__main__":
    for name in sys.argv[1:] or REFERENCES:
        references.store(name, *REFERENCES[name]())
