"""Training of the video autoencoder."""

import dataclasses
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Frames, Int, Key, PyTree
from jvdm.errors import ConfigError
from jvdm.products import product_flops
from jvdm.training.autoencoder import AutoencoderWeights, autoencoder_loss, autoencoder_psnr
from jvdm.training.objective import TrainCall
from jvdm.weights.package import Component, Components
from jvdm.world.clips import WorldClip, clips
from jvdm.world.scene import World

HELD_OUT_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Pixels to pixels through the latents of an autoencoder; batches are `WorldClip`s."""

    vae: nn.Module
    world: World
    """World of the held-out clips that statistics and previews are made of."""
    weights: AutoencoderWeights = AutoencoderWeights()
    held_out: int = 256
    """Clips of split `vae_val` for latent statistics and fidelity at the end."""
    decoder_only: bool = False
    """Leaves the encoder, and with it the latents that a video model has learnt, as it is."""
    noise: float = 1.0
    """Standard deviations of the posterior by which latents are disturbed before decoding."""

    def __post_init__(self) -> None:
        """Refuses statistics of nothing."""
        if self.held_out < 1:
            what = f"--objective.held-out is {self.held_out}"
            raise ConfigError(what, "latent statistics need clips", f"use {HELD_OUT_BATCH} or more")

    def init(self, key: Key) -> PyTree:
        """Returns fresh parameters."""
        frames = jnp.zeros((1, 5, 16, 16, 3))
        return self.vae.init(key, frames)["params"]

    def loss(
        self, params: PyTree, batch: WorldClip, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns `autoencoder_loss` of a batch."""
        told = (self.weights, self.decoder_only, self.noise)
        return autoencoder_loss(self.vae, params, batch.video, call.key, *told)

    @cached_property
    def passes(self) -> float:
        """What a step costs, in forward passes: no gradient of an encoder that stays is made."""
        if not self.decoder_only:
            return 3.0
        size = (1, self.world.num_frames, self.world.height, self.world.width, 3)
        params = jax.eval_shape(self.init, jax.random.key(0))
        given = ({"params": params}, jax.ShapeDtypeStruct(size, jnp.float32))
        encode = partial(self.vae.apply, method="encode")
        return 3.0 - 2.0 * product_flops(encode, *given) / product_flops(self.vae.apply, *given)

    def components(self, params: PyTree) -> Components:
        """Returns `vae.safetensors`."""
        return {"vae": Component(self.vae, params)}

    def summary(self, params: PyTree) -> dict[str, Any]:
        """Returns the latent statistics per channel and PSNR in dB on held-out clips."""
        step = jax.jit(self._measure)
        starts = range(0, self.held_out, HELD_OUT_BATCH)
        parts = [
            jax.device_get(step(params, film(self.world, start + jnp.arange(HELD_OUT_BATCH))))
            for start in starts
        ]
        mean, square, fidelity = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *parts)
        statistics = {"latent_mean": mean, "latent_std": np.sqrt(square - mean**2)}
        found = {name: value.tolist() for name, value in statistics.items()}
        return found | {f"psnr_{name}": float(value) for name, value in fidelity.items()}

    def check(self, params: PyTree) -> None:
        """Traces what `summary` measures."""
        indices = jax.ShapeDtypeStruct((HELD_OUT_BATCH,), jnp.int32)
        jax.eval_shape(self._measure, params, jax.eval_shape(partial(film, self.world), indices))

    def _measure(self, params: PyTree, frames: Frames) -> tuple[Array, Array, dict[str, Array]]:
        mean = self.vae.bind({"params": params}).encode(frames).mean
        axes = (0, 1, 2, 3)
        fidelity = autoencoder_psnr(self.vae, params, frames)
        return jnp.mean(mean, axes), jnp.mean(mean**2, axes), fidelity


@partial(jax.jit, static_argnums=0)
def film(world: World, indices: Int[Array, " B"]) -> Frames:
    """Renders clips that the autoencoder does not train on."""
    return clips(world, "vae_val", indices).video


@dataclasses.dataclass(frozen=True)
class ReconstructionPreview:
    """Held-out clips above their reconstructions."""

    count: int = 4

    def render(
        self, objective: Reconstruction, params: PyTree, data: PyTree
    ) -> tuple[Frames, list[str]]:
        """Returns true clips and what the autoencoder makes of them, in turns."""
        frames = film(objective.world, jnp.arange(self.count))
        again = jax.jit(lambda p, x: objective.vae.apply({"params": p}, x))(params, frames)
        pairs = jnp.stack([frames, again], 1)
        labels = [f"{kind} {n}" for n in range(self.count) for kind in ("true", "reconstructed")]
        return pairs.reshape(-1, *frames.shape[1:]), labels
