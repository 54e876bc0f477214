"""The autoencoder as a frozen part of training: parameters and latent statistics."""

import typing
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Latents, PyTree
from jvdm.errors import WeightsError
from jvdm.weights.folder import Manifest, find, identity, read_manifest


@typing.no_type_check
@flax.struct.dataclass
class LatentSpace:
    """Parameters of a `VideoVAE` and the statistics of its latents per channel."""

    params: PyTree
    mean: Float[Array, " C"]
    std: Float[Array, " C"]

    def standardize(self, latents: Latents) -> Latents:
        """Returns latents with mean 0 and standard deviation 1 per channel."""
        return (latents - _per_channel(self.mean)) / _per_channel(self.std)

    def restore(self, latents: Latents) -> Latents:
        """Inverse of `standardize`: latents that the decoder reads."""
        return latents * _per_channel(self.std) + _per_channel(self.mean)


def _per_channel(values: Float[Array, " C"]) -> Float[Array, "1 1 1 1 C"]:
    return values[None, None, None, None]


def load_latent_space(folder: str | Path) -> LatentSpace:
    """Reads the autoencoder of a weights folder, or of embedded weights by their name.

    Raises:
        WeightsError: If the folder holds no readable autoencoder.
    """
    folder = find(folder)
    manifest = read_manifest(folder)
    if "vae" not in manifest.components:
        raise WeightsError(
            f"{folder} holds {', '.join(manifest.components)}",
            "an autoencoder is needed to make latents",
            "train one with `jvdm train vae` and give its workdir/weights",
        )
    identity(folder)
    _, params = manifest.parameters(folder, "vae")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return latent_space(params, manifest)


def latent_space(params: PyTree, manifest: Manifest) -> LatentSpace:
    """Puts the statistics that a manifest has beside the parameters."""
    statistics = (manifest.latent_mean, manifest.latent_std)
    return LatentSpace(params, *(jnp.asarray(values, jnp.float32) for values in statistics))
