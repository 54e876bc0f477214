"""A weights folder of a random model, small enough that every test compiles it in a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.models import VideoDiT
from jvdm.samplers import ClassifierFree, ShiftedLevels
from jvdm.system import Sampling, System, rules_of
from jvdm.text.words import WordEncoder
from jvdm.vae.video_vae import VideoVAE
from jvdm.values import to_data
from jvdm.weights import Defaults, Manifest, safetensors, write_manifest

ONE_EACH = (1, 1, 1, 1)
VAE = VideoVAE(4, widths=(8, 16), encoder_blocks=ONE_EACH, decoder_blocks=ONE_EACH)
DIT = VideoDiT(
    width=32, depth=2, latent_channels=4, head_dim=16, rotary_axes=(4, 6, 6), dtype="float32"
)
TEXT = WordEncoder(width=16, depth=1, head_dim=16, dtype="float32")
SYSTEM = System(
    TEXT, DIT, VAE, sampling=Sampling(ShiftedLevels(3, 2.0), guidance=ClassifierFree(2.0))
)
MANIFEST = Manifest(
    family="nano",
    components={"vae": to_data(VAE), "model": to_data(DIT), "text": to_data(TEXT)},
    latent_mean=(0.1, -0.2, 0.3, 0.0),
    latent_std=(0.5, 1.0, 0.7, 0.9),
    defaults=Defaults(16, 32, 9, 12.0),
    trained_frames=9,
    trained_sizes=((16, 32),),
    rules=rules_of(SYSTEM),
)


# Random numbers of a hundred shapes: LLVM would take five times as long to make them fast.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def drawn(init: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what `init` makes, in a program that is compiled quickly and runs once."""
    return jax.jit(init, compiler_options=QUICKLY)(*arguments)


def write_weights(folder: Path) -> Path:
    """Writes random weights whose text, levels and latents all have an effect."""
    for name, params in drawn(SYSTEM.init_denoiser, jax.random.key(0)).items():
        safetensors.save(folder / f"{name}.safetensors", params, dtype="float32")
    write_vae(folder)
    write_manifest(folder, MANIFEST)
    return folder


def write_vae(folder: Path, seed: int = 0) -> None:
    """Writes a random autoencoder; another seed is another one."""
    vae = drawn(VAE.init, jax.random.key(seed), jnp.zeros((1, 1, 8, 8, 3)))
    safetensors.save(folder / "vae.safetensors", vae["params"], dtype="float32")
