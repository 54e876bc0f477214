"""Training of the video autoencoder."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Frames, Int, Key, PyTree
from jvdm.training.autoencoder import AutoencoderWeights, autoencoder_loss, autoencoder_psnr
from jvdm.training.flops import product_flops
from jvdm.training.objective import TrainCall
from jvdm.training.packaging import Packaging, write_package
from jvdm.training.showing import write_rows
from jvdm.vae.video_vae import VideoVAE
from jvdm.world.clips import WorldClip, clips
from jvdm.world.scene import World

HELD_OUT_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Pixels to pixels through the latents of a `VideoVAE`; batches are `WorldClip`s."""

    vae: VideoVAE
    world: World
    """World of the held-out clips that statistics and sheets are made of."""
    packaging: Packaging
    weights: AutoencoderWeights = AutoencoderWeights()
    clip_frames: int = 17
    """Pixel frames of a training clip, for the count of operations."""
    held_out: int = 256
    """Clips of split `vae_val` for latent statistics and fidelity at the end."""

    def init(self, key: Key) -> PyTree:
        """Returns fresh parameters."""
        frames = jnp.zeros((1, 5, 16, 16, 3))
        return self.vae.init(key, frames)["params"]

    def loss(
        self, params: PyTree, batch: WorldClip, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns `autoencoder_loss` of a batch."""
        return autoencoder_loss(self.vae, params, batch.video, call.key, self.weights)

    def flops_per_step(self, batch_size: int) -> float:
        """Returns three forward passes over the batch."""
        shape = (1, self.clip_frames, self.world.height, self.world.width, 3)
        frames = jax.ShapeDtypeStruct(shape, jnp.float32)
        params = jax.eval_shape(self.init, jax.random.key(0))
        return 3.0 * batch_size * product_flops(self.vae.apply, {"params": params}, frames)

    def sheet(self, params: PyTree, data: PyTree, path: Path) -> None:
        """Writes held-out clips above their reconstructions."""
        frames = self._held_out(0, 4)
        again = jax.jit(lambda p, x: self.vae.apply({"params": p}, x))(params, frames)
        pairs = np.stack([np.asarray(frames), np.asarray(again)], 1)
        labels = [f"{kind} {n}" for n in range(4) for kind in ("true", "reconstructed")]
        write_rows(path, pairs.reshape(-1, *pairs.shape[2:]), labels)

    def export(self, params: PyTree, data: PyTree, folder: Path) -> None:
        """Writes `vae.safetensors`, the latent statistics and the fidelity reached."""
        step = jax.jit(self._measure)
        parts = [
            jax.tree.map(np.asarray, step(params, self._held_out(start, HELD_OUT_BATCH)))
            for start in range(0, self.held_out, HELD_OUT_BATCH)
        ]
        mean, square, fidelity = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *parts)
        std = np.sqrt(square - mean**2)
        print("held-out PSNR:", {name: round(float(value), 2) for name, value in fidelity.items()})
        print("latent std:", np.round(std, 3).tolist())
        statistics = (mean, std)
        write_package(folder, self.packaging, {"vae": params}, {"vae": self.vae}, statistics)

    def _measure(self, params: PyTree, frames: Frames) -> tuple[Array, Array, dict[str, Array]]:
        mean = self.vae.bind({"params": params}).encode(frames).mean
        axes = (0, 1, 2, 3)
        fidelity = autoencoder_psnr(self.vae, params, frames)
        return jnp.mean(mean, axes), jnp.mean(mean**2, axes), fidelity

    def _held_out(self, start: int, count: int) -> Frames:
        return _film(self.world, start + jnp.arange(count))


@functools.partial(jax.jit, static_argnums=0)
def _film(world: World, indices: Int[Array, " B"]) -> Frames:
    """Renders clips that the autoencoder does not train on."""
    return clips(world, "vae_val", indices).video
