"""Wan against Diffusers, with the same random weights; `python -m tests.parity.test_wan` stores."""

import numpy as np
import pytest

from tests.parity import references
from tests.parity.references import drawn, inputs

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")
diffusers = pytest.importorskip("diffusers", reason="this one needs Diffusers")

pytestmark = pytest.mark.parity

TRANSFORMER = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}


def given(network, weights):
    """Puts weights into a network of PyTorch."""
    state = {name: torch.from_numpy(weights[name]) for name in weights}
    network.load_state_dict(state, strict=True)
    return network.eval()


def shapes(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def transformer():
    """Returns what the reference makes of a level per clip, and of one per frame."""
    network = diffusers.WanTransformer3DModel(**TRANSFORMER)
    given(network, drawn(shapes(network)))
    x, text = map(torch.from_numpy, inputs((2, 4, 3, 8, 12), (2, 7, 16)))
    clip = torch.tensor([500.0, 200.0])
    frames = torch.tensor([[0.0, 400.0, 900.0], [30.0, 60.0, 1000.0]])
    tokens = frames[:, :, None].expand(2, 3, 24).reshape(2, -1)
    with torch.no_grad():
        made = {
            "clip": network(x, clip, text).sample,
            "frames": network(x, tokens, text).sample,
        }
    return dict(network.config), shapes(network), {k: v.numpy() for k, v in made.items()}


REFERENCES = {"wan_transformer": transformer}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_stored_outputs_are_those_of_the_implementation(name):
    config, sizes, outputs = REFERENCES[name]()
    stored = references.Reference(name)
    assert stored.shapes == {key: list(size) for key, size in sizes.items()}
    assert {key: stored.config[key] for key in TRANSFORMER} == TRANSFORMER
    for key, output in outputs.items():
        np.testing.assert_allclose(output, stored.outputs[key], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    for reference, make in REFERENCES.items():
        described, sizes, outputs = make()
        public = {key: value for key, value in described.items() if not key.startswith("_")}
        references.store(reference, public, sizes, outputs)
