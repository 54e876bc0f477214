"""A weights folder of a random model, small enough that every test compiles it in a second."""

from pathlib import Path

import jax
import jax.numpy as jnp

from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.samplers import Call
from jvdm.text.words import WordEncoder
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights import Defaults, Manifest, safetensors, write_manifest
from jvdm.weights.folder import fields_of
from jvdm.world.vocabulary import WORDS

ONE_EACH = (1, 1, 1, 1)
VAE = VideoVAE(4, widths=(8, 16), encoder_blocks=ONE_EACH, decoder_blocks=ONE_EACH)
DIT = VideoDiT(
    width=32, depth=2, latent_channels=4, head_dim=16, rotary_axes=(4, 6, 6), dtype="float32"
)
TEXT = WordEncoder(len(WORDS), width=16, depth=1, head_dim=16, dtype="float32")
DEFAULTS = Defaults(16, 32, 9, 12.0, 3, 2.0, 2.0)
MANIFEST = Manifest(
    family="nano",
    components={
        name: fields_of(module) for name, module in [("vae", VAE), ("dit", DIT), ("text", TEXT)]
    },
    latent_mean=(0.1, -0.2, 0.3, 0.0),
    latent_std=(0.5, 1.0, 0.7, 0.9),
    defaults=DEFAULTS,
    vocabulary=WORDS,
    trained_frames=9,
    trained_sizes=((16, 32),),
)


def write_weights(folder: Path) -> Path:
    """Writes random weights whose text, levels and latents all have an effect."""
    denoiser = jax.jit(_denoiser)(jax.random.key(0))
    safetensors.save(folder / "dit.safetensors", denoiser, dtype="float32")
    write_vae(folder)
    write_manifest(folder, MANIFEST)
    return folder


def write_vae(folder: Path, seed: int = 0) -> None:
    """Writes a random autoencoder; another seed is another one."""
    vae = jax.jit(VAE.init)(jax.random.key(seed), jnp.zeros((1, 1, 8, 8, 3)))
    safetensors.save(folder / "vae.safetensors", vae["params"], dtype="float32")


def _denoiser(key):
    ids = jnp.zeros((1, TEXT.max_tokens), jnp.int32)
    text = TEXT.init(key, ids)
    states = TextStates(*TEXT.bind(text)(ids))
    latents = jnp.zeros((1, 3, 2, 4, 4))
    call = Call.at(latents[..., 0, 0, 0])
    dit = DIT.init(key, latents, call, Conditions(states))
    return {"dit": dit["params"], "text": text["params"]}
