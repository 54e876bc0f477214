"""Wan against Diffusers, with the same random weights; `python -m tests.parity.test_wan` stores."""

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from jvdm.text.pieces import PieceTokenizer
from tests.parity import references
from tests.parity.references import drawn, inputs
from tests.weights.wan_folder import (
    NOISE,
    PICTURE,
    PROCESSOR,
    PROMPTS,
    pictures_of,
    sizes_of,
    write_wan,
)

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")
diffusers = pytest.importorskip("diffusers", reason="this one needs Diffusers")

pytestmark = pytest.mark.parity

TRANSFORMER = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
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


TOLD_TRANSFORMER = TRANSFORMER | {"in_channels": 10}  # two of a mask, four of pictures


# Clips of Wan 2.1 that begin with a picture, and those that end with one too.
SEEING_TRANSFORMER = TOLD_TRANSFORMER | {"image_dim": 24, "added_kv_proj_dim": 48}
BETWEEN_TRANSFORMER = SEEING_TRANSFORMER | {"pos_embed_seq_len": 10}


def transformer(config=TRANSFORMER):
    """Returns what the reference makes of a level per clip, and of one per frame."""
    network = diffusers.WanTransformer3DModel(**config)
    given(network, drawn(shapes(network)))
    channels, sees = config["in_channels"], "image_dim" in config
    each, length = (5, 512) if sees else (0, 7)  # the reference takes the last 512 for the prompt
    told = ((2, channels, 3, 8, 12), (2, length, 32))
    told += ((2, config.get("pos_embed_seq_len", each), 24),) * sees
    x, text, *pictures = map(torch.from_numpy, inputs(*told))
    pictures = pictures[0].reshape(-1, each, 24) if sees else None
    if sees:  # channels 4 and 5 say which pixel frames are known: the first, perhaps the last
        x[:, 4:6] = 0.0
        x[:, 4:6, 0] = 1.0
        x[:, 5, 2] = float("pos_embed_seq_len" in config)
    clip = torch.tensor([500.0, 200.0])
    frames = torch.tensor([[0.0, 400.0, 900.0], [30.0, 60.0, 1000.0]])
    tokens = frames[:, :, None].expand(2, 3, 24).reshape(2, -1)
    with torch.no_grad():
        made = {
            "clip": network(x, clip, text, pictures).sample,
            "frames": network(x, tokens, text, pictures).sample,
        }
    return config, shapes(network), {k: v.numpy() for k, v in made.items()}


UMT5 = {
    "model_type": "umt5",
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "feed_forward_proj": "gated-gelu",
}
IDS = np.array([[7, 3, 90, 12, 5, 44, 3, 81, 17, 60, 23, 1], [5, 33, 2, 9, 1, 0, 0, 0, 0, 0, 0, 0]])


def text_encoder():
    """Returns states of two prompts, and the buckets of relative positions -511 to 511."""
    transformers = pytest.importorskip("transformers", reason="this one needs Transformers")
    network = transformers.UMT5EncoderModel(transformers.UMT5Config(**UMT5))
    sizes = shapes(network)
    sizes.pop("encoder.embed_tokens.weight", None)  # the same array as `shared.weight`
    weights = drawn(sizes)
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    network.load_state_dict(
        {**state, "encoder.embed_tokens.weight": state["shared.weight"]}, strict=False
    )
    mask = torch.from_numpy(IDS != 0)
    with torch.no_grad():
        states = network.eval()(torch.from_numpy(IDS), mask.long()).last_hidden_state
    large = transformers.UMT5Config(
        relative_attention_num_buckets=32, relative_attention_max_distance=128
    )
    layer = transformers.models.umt5.modeling_umt5.UMT5Attention(large, True)
    buckets = layer._relative_position_bucket(torch.arange(-511, 512))
    states = states * mask[..., None]
    return UMT5, sizes, {"states": states.numpy(), "buckets": buckets.numpy()}


CLIP = {
    "hidden_act": "gelu",
    "hidden_size": 24,
    "image_size": 28,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "patch_size": 14,
}
# Of these Pillow 12 and 13 make the same bytes.
SIZES = ((37, 53), (64, 40), (20, 61), (28, 28))


def vision_encoder():
    """Returns the states before the last of a picture, and pictures of odd sizes, prepared."""
    transformers = pytest.importorskip("transformers", reason="this one needs Transformers")
    processor = transformers.CLIPImageProcessor(**PROCESSOR)

    def prepared(height, width):
        picture = PIL.Image.fromarray(pictures_of((1, height, width))[0])
        return processor(images=picture, return_tensors="pt")["pixel_values"]

    made = {f"{height}x{width}": prepared(height, width)[0] for height, width in SIZES}
    for act, name in (("gelu", "states"), ("quick_gelu", "quick")):
        config = transformers.CLIPVisionConfig(**CLIP | {"hidden_act": act})
        network = transformers.CLIPVisionModel(config)
        weights = drawn({f"vision_model.{key}": size for key, size in shapes(network).items()})
        short = {key.removeprefix("vision_model."): array for key, array in weights.items()}
        given(network, short)
        with torch.no_grad():
            states = network(prepared(28, 28), output_hidden_states=True).hidden_states[-2]
        made[name] = states
    sizes = {key: array.shape for key, array in weights.items()}
    return CLIP, sizes, {key: array.numpy() for key, array in made.items()}


VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 4,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.5, 0.7, 2.0, 1.0],
}


VAE_2_2 = {
    "base_dim": 8,
    "decoder_base_dim": 12,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 8,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "is_residual": True,
    "latents_mean": [0.2, 0.1, 0.0, -0.3],
    "latents_std": [0.9, 1.1, 1.6, 0.8],
}


def autoencoder(config=VAE):
    """Returns moments of five frames, and the frames of three latent ones.

    `still` are their means where latents are all one number: that the first is brighter than the
    second is then due to the weights.
    """
    network = diffusers.AutoencoderKLWan(**config)
    given(network, drawn(shapes(network)))
    side = config["scale_factor_spatial"]
    x, z = map(
        torch.from_numpy, inputs((1, 3, 5, 2 * side, 3 * side), (1, config["z_dim"], 3, 2, 3))
    )
    with torch.no_grad():
        moments = network._encode(torch.tanh(x))
        still = network.decode(torch.full_like(z, 0.5)).sample.mean((0, 1, 3, 4))
        made = {"moments": moments, "frames": network.decode(z).sample, "still": still}
    return config, shapes(network), {k: v.numpy() for k, v in made.items()}


def made_by(version, calls, dtype=torch.float32):
    """Returns ids, and the latents of calls of the whole pipeline of a folder from given noise.

    Args:
        version: One of `wan_folder.VERSIONS`.
        calls: Names of what is made, and the arguments of the call beside sizes and prompts.
        dtype: Number type in which text encoder and transformers are loaded.
    """
    transformers = pytest.importorskip("transformers", reason="this one needs Transformers")
    with tempfile.TemporaryDirectory() as name:
        folder = write_wan(Path(name), version)
        index = json.loads((folder / "model_index.json").read_text())
        kind = {"torch_dtype": dtype}
        text = transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder", **kind)
        networks: dict[str, Any] = {
            place: diffusers.WanTransformer3DModel.from_pretrained(folder / place, **kind)
            for place in ("transformer", "transformer_2")
            if (folder / place).exists()
        }
        if index.get("image_encoder"):
            place = folder / "image_encoder"
            networks["image_encoder"] = transformers.CLIPVisionModel.from_pretrained(place)
            place = folder / "image_processor"
            networks["image_processor"] = transformers.CLIPImageProcessor.from_pretrained(place)
        pipe = getattr(diffusers, index["_class_name"])(
            tokenizer=None,
            text_encoder=text,
            vae=diffusers.AutoencoderKLWan.from_pretrained(folder / "vae"),
            scheduler=diffusers.UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
            boundary_ratio=index["boundary_ratio"],
            expand_timesteps=index["expand_timesteps"],
            **networks,
        )
        ids = PieceTokenizer(str(folder / "tokenizer/tokenizer.json")).encode_batch(
            [*PROMPTS, "", ""]
        )[0]
    mask = torch.from_numpy(ids != 0)
    with torch.no_grad():
        states = text(torch.from_numpy(ids), mask.long()).last_hidden_state * mask[..., None]
    pipe.set_progress_bar_config(disable=True)
    told = {"prompt_embeds": states[:2], "negative_prompt_embeds": states[2:]}
    noise, made = torch.from_numpy(NOISE.transpose(0, 4, 1, 2, 3).copy()), {"ids": ids}
    for name, settings in calls.items():
        call = {"num_inference_steps": 4, "guidance_scale": 5.0, **sizes_of(version), **settings}
        made[name] = pipe(**told, **call, latents=noise.clone(), output_type="latent").frames
    return {}, {}, {key: np.asarray(value) for key, value in made.items()}, pipe.vae


def pipeline():
    """Returns latents and frames of Wan 2.1."""
    *described, made, vae = made_by("2.1", {"latents": {}})
    mean, std = (
        torch.tensor(VAE[f"latents_{key}"])[:, None, None, None] for key in ("mean", "std")
    )
    with torch.no_grad():
        made["frames"] = vae.decode(torch.from_numpy(made["latents"]) * std + mean).sample.numpy()
    return *described, made


def pipeline_in_bfloat16():
    """Returns the same in bfloat16, with an autoencoder in float32, as its model card says."""
    *described, made, _ = made_by("2.1", {"latents": {}}, torch.bfloat16)
    return *described, made


def ti2v():
    """Returns latents of Wan 2.2 TI2V, without and with a picture, of which both use one folder."""
    *described, made, _ = made_by("ti2v", {"latents": {}})
    picture = PIL.Image.fromarray(PICTURE)
    *_, others, _ = made_by("ti2v of a picture", {"of_picture": {"image": picture}})
    return *described, {**made, "of_picture": others["of_picture"]}


def a14b():
    """Returns latents of two networks and two scales; two of four levels are those of each."""
    *described, made, _ = made_by("a14b", {"latents": {"guidance_scale_2": 3.0}})
    return *described, made


def a14b_of_pictures(dtype=torch.float32):
    """Returns latents of a first picture, and of a first and a last one."""
    first, last = PIL.Image.fromarray(PICTURE[:16, :32]), PIL.Image.fromarray(PICTURE[16:, 32:])
    told = {"image": first, "guidance_scale_2": 3.0}
    calls = {"of_picture": told, "of_two": {**told, "last_image": last}}
    *described, made, _ = made_by("a14b of a picture", calls, dtype)
    return *described, made


def of_picture(dtype=torch.float32):
    """Returns latents of a first picture that a vision encoder sees too, that in float32."""
    picture = PIL.Image.fromarray(PICTURE[:16, :32])
    *described, made, _ = made_by("picture", {"latents": {"image": picture}}, dtype)
    return *described, made


def between():
    """Returns latents of a first and a last picture that a vision encoder sees too."""
    first, last = PIL.Image.fromarray(PICTURE[:16, :32]), PIL.Image.fromarray(PICTURE[16:, 32:])
    calls = {"latents": {"image": first, "last_image": last}}
    *described, made, _ = made_by("two pictures", calls)
    return *described, made


REFERENCES = {
    "wan_a14b_of_pictures_in_bfloat16": functools.partial(a14b_of_pictures, dtype=torch.bfloat16),
    "wan_of_picture_in_bfloat16": functools.partial(of_picture, dtype=torch.bfloat16),
    "wan_vae": autoencoder,
    "wan_vae_2_2": functools.partial(autoencoder, VAE_2_2),
    "wan_transformer": transformer,
    "umt5": text_encoder,
    "clip_vision": vision_encoder,
    "wan_pipeline": pipeline,
    "wan_pipeline_in_bfloat16": pipeline_in_bfloat16,
    "wan_ti2v": ti2v,
    "wan_a14b": a14b,
    "wan_told_transformer": functools.partial(transformer, TOLD_TRANSFORMER),
    "wan_a14b_of_pictures": a14b_of_pictures,
    "wan_of_picture": of_picture,
    "wan_between": between,
    "wan_seeing_transformer": functools.partial(transformer, SEEING_TRANSFORMER),
    "wan_between_transformer": functools.partial(transformer, BETWEEN_TRANSFORMER),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_stored_outputs_are_those_of_the_implementation(name):
    references.assert_stored(name, *REFERENCES[name]())


if __name__ == "__main__":
    for reference in sys.argv[1:] or REFERENCES:
        references.store(reference, *REFERENCES[reference]())
