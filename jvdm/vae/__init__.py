"""Video autoencoders: pixels to latents and back, whole or in pieces."""

from jvdm.vae.autoencoder import Autoencoder, Posterior
from jvdm.vae.tiling import decode, encode
from jvdm.vae.video_vae import VideoVAE

__all__ = ["Autoencoder", "Posterior", "VideoVAE", "decode", "encode"]
