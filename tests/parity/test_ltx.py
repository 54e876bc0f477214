"""LTX-Video against Diffusers, with the same random weights; `python -m tests.parity.test_ltx`."""

import functools
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from jvdm.text.pieces import PieceTokenizer
from jvdm.vae.ltx import injected
from tests.parity import references
from tests.parity.references import drawn, inputs
from tests.parity.test_wan import IDS, UMT5, given, shapes
from tests.weights import ltx_folder

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


TRANSFORMER_13B = {
    **TRANSFORMER,
    **{"num_attention_heads": 2, "attention_head_dim": 128, "cross_attention_dim": 256},
}
"""Heads as large as those of the 13B models."""


def transformer(config):
    """Returns what is made of a level per clip and per frame, at 30 frames a second, and of
    coordinates that begin with a single frame, as the later pipeline has them."""
    network = diffusers.LTXVideoTransformer3DModel(**config)
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
    return config, shapes(network), made


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


VAE = {"latent_channels": 8, "patch_size": 2, "scaling_factor": 1.0}
OLD = {
    "block_out_channels": [4, 4, 8, 8],
    "decoder_block_out_channels": [4, 4, 8, 8],
    "layers_per_block": [1, 1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1, 1],
}
TOLD = {
    "decoder_block_out_channels": [8, 16, 32],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [False] * 4,
    "upsample_residual": [True] * 3,
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
}
LATER = {
    **TOLD,
    "block_out_channels": [4, 4, 8, 8, 16],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [1, 1, 1, 1, 1],
    "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 8,
}
VERSIONS = {
    "ltx_vae_0_9_0": OLD,
    "ltx_vae_0_9_1": {**OLD, **TOLD, "decoder_inject_noise": [False, True, False, True]},
    "ltx_vae_0_9_5": LATER,
}
LEVEL = 300.0  # so far from clean because the learnt scale of the references is small


def autoencoder(name):
    """Returns moments of nine frames, and the frames of two latent ones."""
    network = diffusers.AutoencoderKLLTXVideo(**VAE, **VERSIONS[name])
    given(network, drawn(shapes(network)))
    x, z = map(torch.from_numpy, inputs((1, 3, 9, 16, 32), (1, 8, 2, 1, 2)))
    noises = injected_noises(name)
    level = torch.tensor([LEVEL]) if network.config.timestep_conditioning else None
    with torch.no_grad(), mock.patch.object(torch, "randn", lambda *_, **__: next(noises)):
        made = {
            "moments": network.encoder(torch.tanh(x)),
            "frames": network.decode(z, level).sample,
        }
    told = {key: value for key, value in network.config.items() if not key.startswith("_")}
    config = json.loads(json.dumps(told))  # tuples of defaults are lists in a file
    return config, shapes(network), {k: v.numpy() for k, v in made.items()}


def injected_noises(name):
    """Yields the pictures that our blocks add, in the order in which the reference adds them."""
    blocks = [("middle_0", 1, 2), ("level_1_0", 4, 8)] if name == "ltx_vae_0_9_1" else []
    for block, height, width in blocks:
        for index in range(2):
            noise = injected(("decoder", block), index, (height, width))
            yield torch.from_numpy(np.array(noise))


def pipeline(version, image=False, dtype=torch.float32):
    """Returns latents of two prompts, made by a whole pipeline from given noise.

    With `image`, the first latent frame is that of a picture. Text encoder and transformer compute
    in `dtype`; frames are decoded in float32 alone.
    """
    transformers = pytest.importorskip("transformers", reason="this one needs Transformers")
    name = ltx_folder.VERSIONS[version][0]
    later = name == ltx_folder.LATER
    name = "LTXImageToVideoPipeline" if image and not later else name
    with tempfile.TemporaryDirectory() as place:
        folder = ltx_folder.write_ltx(Path(place), version)
        kind = {"torch_dtype": dtype}
        text = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder", **kind)
        pipe = getattr(diffusers, name)(
            tokenizer=None,
            text_encoder=text,
            vae=diffusers.AutoencoderKLLTXVideo.from_pretrained(folder / "vae"),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
                folder / "scheduler"
            ),
            transformer=diffusers.LTXVideoTransformer3DModel.from_pretrained(
                folder / "transformer", **kind
            ),
        )
        length = 256 if later else 128  # tokens, padding too, that T5 reads
        tokenizer = PieceTokenizer(str(folder / "tokenizer/tokenizer.json"), length)
        ids = tokenizer.encode_batch([*ltx_folder.PROMPTS, "", ""])[0]
    noise = torch.from_numpy(ltx_folder.NOISE.copy())
    with torch.no_grad():
        states = text(torch.from_numpy(ids)).last_hidden_state
        if image:
            picture = torch.from_numpy(ltx_folder.PICTURE).permute(2, 0, 1)[None, :, None]
            clean = pipe.vae.encode(picture / 127.5 - 1).latent_dist.mean
            clean = pipe._normalize_latents(clean, pipe.vae.latents_mean, pipe.vae.latents_std)
            noise[:, 0] = clean.permute(0, 2, 3, 4, 1)[:, 0]
    mask = torch.from_numpy(ids != 0)
    told = {"prompt_embeds": states[:2], "negative_prompt_embeds": states[2:]}
    told |= {"prompt_attention_mask": mask[:2], "negative_prompt_attention_mask": mask[2:]}
    sizes = {"height": 32, "width": 64, "num_frames": 17, "num_inference_steps": 4}
    pipe.set_progress_bar_config(disable=True)
    told |= {"image": Image.fromarray(ltx_folder.PICTURE)} if image else {}
    told |= {"image_cond_noise_scale": 0.0} if later else {}
    draw = functools.partial(lambda shape, **_: noise.permute(0, 4, 1, 2, 3))
    module = sys.modules[type(pipe).__module__]
    mean = functools.partial(lambda encoded, **_: encoded.latent_dist.mean)
    changed = {"randn_tensor": draw, **({"retrieve_latents": mean} if later else {})}
    with mock.patch.multiple(module, **changed):
        given = {} if later else {"latents": noise.reshape(2, 24, 8)}
        made = pipe(**told, **sizes, **given, guidance_scale=3.0, output_type="latent").frames
    if later:
        made = made.permute(0, 2, 3, 4, 1)
    made = {"ids": ids, "latents": made.float().reshape(2, 3, 2, 4, 8)}
    if pipe.vae.config.timestep_conditioning or image or dtype != torch.float32:
        return {}, {}, {key: np.asarray(value) for key, value in made.items()}
    packed = made["latents"].permute(0, 4, 1, 2, 3)
    latents = pipe._denormalize_latents(packed, pipe.vae.latents_mean, pipe.vae.latents_std)
    with torch.no_grad():
        made["frames"] = pipe.vae.decode(latents).sample[:1, :, ::8]
    return {}, {}, {key: np.asarray(value) for key, value in made.items()}


REFERENCES = {
    "ltx_transformer": functools.partial(transformer, TRANSFORMER),
    "ltx_transformer_13b": functools.partial(transformer, TRANSFORMER_13B),
    "t5": text_encoder,
    "ltx_pipeline": functools.partial(pipeline, "0_9_0"),
    "ltx_pipeline_in_bfloat16": functools.partial(pipeline, "0_9_0", dtype=torch.bfloat16),
    "ltx_later_pipeline_in_bfloat16": functools.partial(pipeline, "0_9_5", dtype=torch.bfloat16),
    "ltx_later_image_pipeline_in_bfloat16": functools.partial(
        pipeline, "0_9_5", image=True, dtype=torch.bfloat16
    ),
    "ltx_image_pipeline": functools.partial(pipeline, "0_9_0", image=True),
    "ltx_later_pipeline": functools.partial(pipeline, "0_9_5"),
    "ltx_later_image_pipeline": functools.partial(pipeline, "0_9_5", image=True),
}
REFERENCES |= {name: functools.partial(autoencoder, name) for name in VERSIONS}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_stored_outputs_are_those_of_the_implementation(name):
    references.assert_stored(name, *REFERENCES[name]())


if __name__ == "__main__":
    for reference in sys.argv[1:] or REFERENCES:
        references.store(reference, *REFERENCES[reference]())
