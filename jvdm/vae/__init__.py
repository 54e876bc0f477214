"""Video autoencoders: pixels to latents and back, whole or in pieces."""

from jvdm.vae.tiling import Tiling, decode_tiled, encode_tiled, make_tiling, stream_decode
from jvdm.vae.video_vae import Carry, Posterior, VideoVAE

__all__ = [
    "Carry",
    "Posterior",
    "Tiling",
    "VideoVAE",
    "decode_tiled",
    "encode_tiled",
    "make_tiling",
    "stream_decode",
]
