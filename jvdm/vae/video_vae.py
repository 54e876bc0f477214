"""The causal video autoencoder: 1 + 4n frames of pixels <-> 1 + n frames of latents.

The first frame is coded alone, so an image is a video of one frame. No output
depends on later input, in either direction, and both directions can be fed in
chunks: see `VideoVAE.encode_chunk` and `VideoVAE.decode_chunk`.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jvdm.arrays import Array, Float, Frames, Latents
from jvdm.features import fold, unfold
from jvdm.vae.autoencoder import ChunkedAutoencoder, Decoded, Posterior
from jvdm.vae.conv import NormSilu, SpatialConv, Stage, TimeDouble, TimeHalve, fan_in_normal

Carry = tuple[tuple[Float[Array, "B 2 _ _ _"], ...], ...]
"""Contexts of the temporal mixes: one tuple per stage, one entry per block."""

_PATCH = 4  # pixels per side that become channels before the first convolution
_NO_CARRY = (None,) * 4
_LOG_VARIANCE_BIAS = -3.0  # starts with little noise: standard deviation .22
_LOG_VARIANCE_RANGE = (-10.0, 2.0)


class Encoder(nn.Module):
    """Pixels to the mean and the log-variance of latents."""

    latent_channels: int
    widths: tuple[int, int]
    blocks: tuple[int, int, int, int]
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, frames: Frames, carry: Carry | None) -> tuple[Posterior, Carry]:
        """Returns the distribution of the latents and the carry of the next chunk."""
        (thin, wide), dtype = self.widths, self.dtype
        starts, contexts = carry is None, carry or _NO_CARRY
        h = fold((frames * 2.0 - 1.0).astype(dtype), _PATCH)
        h = SpatialConv(thin, dtype=dtype, name="conv_in")(h)
        h, context_0 = Stage(self.blocks[0], dtype, name="stage_0")(h, contexts[0])
        h = TimeHalve(thin, dtype, name="halve_0")(h, starts)
        h, context_1 = Stage(self.blocks[1], dtype, name="stage_1")(h, contexts[1])
        h = nn.Dense(wide, dtype=dtype, kernel_init=fan_in_normal(), name="widen")(fold(h, 2))
        h, context_2 = Stage(self.blocks[2], dtype, name="stage_2")(h, contexts[2])
        h = TimeHalve(wide, dtype, name="halve_1")(h, starts)
        h, context_3 = Stage(self.blocks[3], dtype, name="stage_3")(h, contexts[3])
        h = NormSilu(name="norm_out")(h)
        h = SpatialConv(self.latent_channels + 1, 0.5, dtype, name="conv_out")(h)
        mean, log_variance = jnp.split(h.astype(jnp.float32), [self.latent_channels], axis=-1)
        log_variance = jnp.clip(log_variance + _LOG_VARIANCE_BIAS, *_LOG_VARIANCE_RANGE)
        return Posterior(mean, log_variance), (context_0, context_1, context_2, context_3)


class Decoder(nn.Module):
    """Latents to pixels."""

    widths: tuple[int, int]
    blocks: tuple[int, int, int, int]
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, latents: Latents, carry: Carry | None) -> tuple[Decoded, Carry]:
        """Returns frames of about 0..1 and the carry of the next chunk."""
        (thin, wide), dtype = self.widths, self.dtype
        starts, contexts = carry is None, carry or _NO_CARRY
        h = SpatialConv(wide, dtype=dtype, name="conv_in")(latents.astype(dtype))
        h, context_0 = Stage(self.blocks[0], dtype, name="stage_0")(h, contexts[0])
        h = TimeDouble(wide, dtype, name="double_0")(h, starts)
        h, context_1 = Stage(self.blocks[1], dtype, name="stage_1")(h, contexts[1])
        h = nn.Dense(4 * thin, dtype=dtype, kernel_init=fan_in_normal(), name="narrow")(h)
        h, context_2 = Stage(self.blocks[2], dtype, name="stage_2")(unfold(h, 2), contexts[2])
        h = TimeDouble(thin, dtype, name="double_1")(h, starts)
        h, context_3 = Stage(self.blocks[3], dtype, name="stage_3")(h, contexts[3])
        h = NormSilu(name="norm_out")(h)
        h = SpatialConv(3 * _PATCH**2, 0.1, dtype, name="conv_out")(h)
        frames = (unfold(h.astype(jnp.float32), _PATCH) + 1.0) / 2.0
        return frames, (context_0, context_1, context_2, context_3)


class VideoVAE(ChunkedAutoencoder):
    """Causal video autoencoder with strides 4 in time and 8 in space.

    Attributes:
        latent_channels: Channels of a latent cell.
        widths: Channels at 1/4 and at 1/8 of the resolution.
        encoder_blocks: Residual blocks per stage, from pixels to latents. Stages 0 and 1
            work at 1/4 of the resolution with every frame and every second frame, stages
            2 and 3 at 1/8 with every second and every fourth.
        decoder_blocks: Residual blocks per stage, from latents to pixels.
        dtype: Type of the computation; parameters, latents and frames are float32.
    """

    latent_channels: int = 16
    widths: tuple[int, int] = (128, 256)
    encoder_blocks: tuple[int, int, int, int] = (2, 1, 2, 2)
    decoder_blocks: tuple[int, int, int, int] = (3, 2, 2, 3)
    dtype: DTypeLike = jnp.bfloat16

    strides: ClassVar[tuple[int, int, int]] = (4, 8, 8)

    def setup(self) -> None:  # noqa: D102
        self.encoder = Encoder(
            self.latent_channels, self.widths, self.encoder_blocks, dtype=self.dtype
        )
        self.decoder = Decoder(self.widths, self.decoder_blocks, dtype=self.dtype)

    @property
    def features_per_pixel(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Channels of its widest features over the pixels that a cell of these stands for."""
        return self.widths[0] / 4**2

    @property
    def encoder_reach(self) -> int:
        """Latent cells to each side of a latent cell whose pixels it depends on."""
        fine, coarse = sum(self.encoder_blocks[:2]), sum(self.encoder_blocks[2:])
        return _half_up(1 + fine) + coarse + 1  # the ones are conv_in and conv_out

    @property
    def decoder_reach(self) -> int:
        """Latent cells to each side of a latent cell that its pixels depend on."""
        coarse, fine = sum(self.decoder_blocks[:2]), sum(self.decoder_blocks[2:])
        return 1 + coarse + _half_up(fine + 1)  # the ones are conv_in and conv_out


def _half_up(cells: int) -> int:
    return (cells + 1) // 2
