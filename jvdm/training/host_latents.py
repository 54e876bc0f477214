"""Latents of clips that come from the host: the user's videos, or stored ones."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
from jax.sharding import Mesh

from jvdm.arrays import Array, Int
from jvdm.data.host import HostSource, HostState
from jvdm.parallel.mesh import replicate
from jvdm.vae.latent_space import LatentSpace, load_latent_space


@typing.no_type_check
@flax.struct.dataclass
class HostLatentState:
    """Frames of the next step, and the autoencoder that encodes them."""

    frames: HostState
    space: LatentSpace


@dataclasses.dataclass(frozen=True)
class HostLatents:
    """Source of standardised latents and captions, encoded inside the training step."""

    frames: HostSource
    vae: nn.Module
    vae_weights: Path
    """Weights folder of the autoencoder that makes the latents."""

    def in_workdir(self, workdir: Path) -> "HostLatents":
        """Returns the source of a run in `workdir`."""
        return dataclasses.replace(self, frames=self.frames.in_workdir(workdir))

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> HostLatentState:
        """Reads the autoencoder, opens the clips and goes to where `saved` says."""
        space = replicate(load_latent_space(self.vae_weights), mesh)
        return HostLatentState(self.frames.start(position, saved, mesh), space)

    def feed(self, data: HostLatentState) -> HostLatentState:
        """Brings the next batch to the devices."""
        return dataclasses.replace(data, frames=self.frames.feed(data.frames))

    def draw(
        self, data: HostLatentState, step: Int[Array, ""], batch_size: int
    ) -> tuple[dict[str, Array], HostLatentState]:
        """Encodes the batch that `feed` has brought."""
        batch, frames = self.frames.draw(data.frames, step, batch_size)
        posterior: Any = self.vae.apply({"params": data.space.params}, batch.video, method="encode")
        latents = data.space.standardize(posterior.mean)
        found = {"latents": latents, "tokens": batch.tokens}
        return found, dataclasses.replace(data, frames=frames)

    def saved(self, data: HostLatentState) -> bytes:
        """Returns the position of the pipeline."""
        return self.frames.saved(data.frames)
