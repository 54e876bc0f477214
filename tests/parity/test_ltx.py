"""LTX-Video against Diffusers, with the same random weights; `python -m tests.parity.test_ltx`."""

import sys

import numpy as np
import pytest

from tests.parity import references
from tests.parity.references import drawn, inputs
from tests.parity.test_wan import IDS, UMT5, given, shapes

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")
diffusers = pytest.importorskip("diffusers", reason="this one needs Diffusers")

pytestmark = pytest.mark.parity

TRANSFORMER = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 10,
    "cross_attention_dim": 40,
    "num_layers": 2,
    "caption_channels": 32,
}


def transformer():
    """Returns what is made of a level per clip and per frame, at 30 frames a second, and of
    coordinates that begin with a single frame, as the later pipeline has them."""
    network = diffusers.LTXVideoTransformer3DModel(**TRANSFORMER)
    given(network, drawn(shapes(network)))
    x, text = map(torch.from_numpy, inputs((2, 24, 8), (2, 7, 32)))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    clip = torch.tensor([500.0, 200.0])
    frames = torch.tensor([[0.0, 400.0, 900.0], [30.0, 60.0, 1000.0]])
    tokens = frames[:, :, None].expand(2, 3, 8).reshape(2, -1)
    sizes = {"num_frames": 3, "height": 2, "width": 4}
    places = torch.stack(torch.meshgrid(*map(torch.arange, (3, 2, 4)), indexing="ij"))
    places = diffusers.LTXConditionPipeline._scale_video_ids(places.reshape(1, 3, -1), 32, 8)
    places = places.float().repeat(2, 1, 1)
    places[:, 0] /= 25.0
    with torch.no_grad():
        made = {
            "clip": network(x, text, clip, mask, **sizes, rope_interpolation_scale=(0.32, 32, 32)),
            "frames": network(
                x, text, tokens, mask, **sizes, rope_interpolation_scale=(8 / 30, 32, 32)
            ),
            "from_first": network(x, text, tokens, mask, video_coords=places),
        }
    made = {name: output.sample.reshape(2, 3, 2, 4, 8).numpy() for name, output in made.items()}
    return TRANSFORMER, shapes(network), made


T5 = {**UMT5, "model_type": "t5"}


def text_encoder():
    """Returns states of two prompts, whose padding is masked or is read."""
    transformers = pytest.importorskip("transformers", reason="this one needs Transformers")
    network = transformers.T5EncoderModel(transformers.T5Config(**T5))
    sizes = shapes(network)
    sizes.pop("encoder.embed_tokens.weight", None)  # the same array as `shared.weight`
    weights = drawn(sizes)
    words = {"encoder.embed_tokens.weight": weights["shared.weight"]}
    given(network, {**weights, **words} if len(sizes) < len(shapes(network)) else weights)
    ids, mask = torch.from_numpy(IDS), torch.from_numpy(IDS != 0)
    with torch.no_grad():
        masked, read = (network(ids, told).last_hidden_state for told in (mask.long(), None))
    made = {"masked": masked * mask[..., None], "read": read * mask[..., None]}
    return T5, sizes, {name: states.numpy() for name, states in made.items()}


REFERENCES = {"ltx_transformer": transformer, "t5": text_encoder}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_stored_outputs_are_those_of_the_implementation(name):
    config, sizes, outputs = REFERENCES[name]()
    stored = references.Reference(name)
    assert stored.shapes == {key: list(size) for key, size in sizes.items()}
    assert stored.config == config
    for key, output in outputs.items():
        np.testing.assert_allclose(output, stored.outputs[key], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    for reference in sys.argv[1:] or REFERENCES:
        references.store(reference, *REFERENCES[reference]())
