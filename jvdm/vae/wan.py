"""The video autoencoder of Wan 2.1: 1 + 4n frames of pixels <-> 1 + n frames of latents.

Wan Team, arXiv:2503.20314, section 4.1; computed as Diffusers' `AutoencoderKLWan` does it. There
a video is coded frame by frame with caches; here whatever number of frames is given goes through
at once, and what the convolutions in time saw last goes on to the next call. The result is the
same for any division (`encode_chunk`, `decode_chunk`).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Frames, Latents
from jvdm.vae.autoencoder import ChunkedAutoencoder, Decoded, Posterior
from jvdm.vae.conv import Features
from pallas_kernels import dense_attention

Carry = tuple[Float[Array, "B _ _ _ _"], ...]
"""Frames that each convolution in time saw last, in the order in which they are applied."""

WHOLE = 1 << 20  # cells; the attention in the middle sees all of a frame
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Past:
    """What the convolutions of one call take over from the last one, and hand on."""

    def __init__(self, carry: Carry | None):
        self.starts = carry is None
        self._before = list(carry or ())
        self.after: list[Array] = []

    def before(self, x: Features, count: int, zeros: bool = True) -> Float[Array, "B t H W C"]:
        """Returns `x` with the `count` frames before it, or zeros where a video starts.

        Without `zeros` there is nothing before the start.
        """
        if not self.starts:
            x = jnp.concatenate([self._before[len(self.after)].astype(x.dtype), x], 1)
        elif zeros:
            x = jnp.pad(x, ((0, 0), (count, 0), (0, 0), (0, 0), (0, 0)))
        self.after.append(x[:, x.shape[1] - count :])
        return x


class CausalConv(nn.Module):
    """Convolution over a frame, the frames before and the cells around."""

    features: int
    size: tuple[int, int, int] = (3, 3, 3)
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Float[Array, "B T H W c"]:
        """Returns as many frames of `features` channels."""
        x = past.before(x, self.size[0] - 1) if self.size[0] > 1 else x
        return _conv(x, self.features, self.size, (1, 1, 1), self.dtype)


def _conv(
    x: Features, features: int, size: tuple[int, int, int], strides: tuple[int, ...], dtype: str
) -> Array:
    """Convolves with zeros around a frame and nothing before or after; named `conv`."""
    around = [(0, 0), (size[1] // 2,) * 2, (size[2] // 2,) * 2]
    return nn.Conv(features, size, strides, around, dtype=dtype, name="conv")(x)


class Norm(nn.Module):
    """Divides by the root mean square of the channels of a cell, and scales them."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Returns the normalised input in its own dtype."""
        channels = x.shape[-1]
        gain = self.param("gain", nn.initializers.ones, (channels,), jnp.float32)
        wide = x.astype(jnp.float32)
        power = jnp.maximum(jnp.sum(wide * wide, -1, keepdims=True), 1e-24)
        y = wide * jax.lax.rsqrt(power) * channels**0.5
        return (y * gain[None, None, None, None]).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Float[Array, "B T H W c"]:
        """Returns frames of `features` channels."""
        same = x.shape[-1] == self.features
        short = (
            x if same else CausalConv(self.features, (1, 1, 1), self.dtype, name="short")(x, past)
        )
        h = nn.silu(Norm(name="norm_0")(x))
        h = CausalConv(self.features, dtype=self.dtype, name="conv_0")(h, past)
        h = nn.silu(Norm(name="norm_1")(h))
        return short + CausalConv(self.features, dtype=self.dtype, name="conv_1")(h, past)


class FrameAttention(nn.Module):
    """Every cell of a frame attends to all cells of the frame, with one head."""

    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Returns the input with what was read added."""
        batch, frames, height, width, channels = x.shape
        h = Norm(name="norm")(x).reshape(batch * frames, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv[:, :, None], 3, -1)
        h = nn.Dense(channels, dtype=self.dtype, name="out")(dense_attention(q, k, v)[:, :, 0])
        return x + h.reshape(x.shape)


class Middle(nn.Module):
    """Residual blocks with attention between them, at the rate of the latents."""

    dtype: str

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Features:
        """Returns features of the same shape."""
        x = ResidualBlock(x.shape[-1], self.dtype, name="block_0")(x, past)
        x = FrameAttention(self.dtype, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.dtype, name="block_1")(x, past)


class Down(nn.Module):
    """Halves the sides, and with `time` the frames but the first of a video."""

    time: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Float[Array, "B t h w C"]:
        """Returns `1 + n` frames for `1 + 2n` that start a video, else `n` for `2n`."""
        channels = x.shape[-1]
        space: dict[str, Any] = {
            "padding": [(0, 0), (0, 1), (0, 1)],
            "dtype": self.dtype,
            "name": "space",
        }
        x = nn.Conv(channels, (1, 3, 3), (1, 2, 2), **space)(x)
        if not self.time:
            return x
        first, x = x[:, :1], past.before(x, 1, zeros=False)
        time: dict[str, Any] = {"padding": "VALID", "dtype": self.dtype, "name": "time"}
        y = nn.Conv(channels, (3, 1, 1), (2, 1, 1), **time)(x)
        return jnp.concatenate([first, y], 1) if past.starts else y


class Up(nn.Module):
    """Doubles the sides at half the channels, and with `time` the frames but the first."""

    time: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Float[Array, "B t h w c"]:
        """Returns `1 + 2n` frames for `1 + n` that start a video, else `2n` for `n`."""
        if self.time:
            count = 1 if past.starts else 0  # frames that stay alone, which no other sees
            twice = CausalConv(2 * x.shape[-1], (3, 1, 1), self.dtype, name="time")
            pairs = twice(x[:, count:], past)
            batch, frames, *cells, channels = pairs.shape
            pairs = pairs.reshape(batch, frames, *cells, 2, channels // 2)
            pairs = jnp.moveaxis(pairs, -2, 2).reshape(batch, 2 * frames, *cells, channels // 2)
            x = jnp.concatenate([x[:, :count], pairs], 1)
        x = x.repeat(2, 2).repeat(2, 3)
        space: dict[str, Any] = {"dtype": self.dtype, "name": "space"}
        return nn.Conv(x.shape[-1] // 2, (1, 3, 3), **space)(x)


class Sizes(NamedTuple):
    """What encoder and decoder share: channels per level from pixels on, and blocks of a level."""

    widths: tuple[int, ...]
    blocks: int
    time: tuple[bool, ...]
    """Between which levels the frames are halved too."""


class Encoder(nn.Module):
    """Pixels to mean and log-variance of latents."""

    latent_channels: int
    sizes: Sizes
    dtype: str

    @nn.compact
    def __call__(self, frames: Frames, carry: Carry | None) -> tuple[Posterior, Carry]:
        """Returns the distribution of the latents and the carry of the next chunk."""
        past, (widths, blocks, time) = Past(carry), self.sizes
        x = (frames * 2.0 - 1.0).astype(self.dtype)
        x = CausalConv(widths[0], dtype=self.dtype, name="conv_in")(x, past)
        for level, width in enumerate(widths):
            for block in range(blocks):
                x = ResidualBlock(width, self.dtype, name=f"level_{level}_{block}")(x, past)
            if level < len(time):
                x = Down(time[level], self.dtype, name=f"down_{level}")(x, past)
        x = Middle(self.dtype, name="middle")(x, past)
        x = nn.silu(Norm(name="norm_out")(x))
        size, point = 2 * self.latent_channels, (1, 1, 1)
        x = CausalConv(size, dtype=self.dtype, name="conv_out")(x, past)
        x = CausalConv(size, point, self.dtype, name="moments")(x, past).astype(jnp.float32)
        mean, log_variance = jnp.split(x, 2, -1)
        return Posterior(mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)), tuple(past.after)


class Decoder(nn.Module):
    """Latents to pixels."""

    sizes: Sizes
    dtype: str

    @nn.compact
    def __call__(self, latents: Latents, carry: Carry | None) -> tuple[Decoded, Carry]:
        """Returns frames of about 0..1 and the carry of the next chunk."""
        past, (widths, blocks, time) = Past(carry), self.sizes
        x, point = latents.astype(self.dtype), (1, 1, 1)
        x = CausalConv(x.shape[-1], point, self.dtype, name="latents")(x, past)
        x = CausalConv(widths[-1], dtype=self.dtype, name="conv_in")(x, past)
        x = Middle(self.dtype, name="middle")(x, past)
        for level, width in enumerate(reversed(widths)):
            for block in range(blocks + 1):
                x = ResidualBlock(width, self.dtype, name=f"level_{level}_{block}")(x, past)
            if level < len(time):
                x = Up(time[-1 - level], self.dtype, name=f"up_{level}")(x, past)
        x = nn.silu(Norm(name="norm_out")(x))
        x = CausalConv(3, dtype=self.dtype, name="conv_out")(x, past)
        return (x.astype(jnp.float32) + 1.0) / 2.0, tuple(past.after)


class WanVAE(ChunkedAutoencoder):
    """Causal video autoencoder of Wan 2.1; the defaults are those of its weights.

    Attributes:
        latent_channels: Channels of a latent cell.
        width: Channels at the resolution of pixels.
        multiples: Channels of each level over `width`; a level has half the sides of the last.
        blocks: Residual blocks of a level of the encoder; the decoder has one more.
        time: After which levels of the encoder the frames are halved.
        dtype: Number type of the computation; latents and frames are float32.
    """

    latent_channels: int = 16
    width: int = 96
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time: tuple[bool, ...] = (False, True, True)
    dtype: str = "bfloat16"

    def setup(self) -> None:  # noqa: D102
        sizes = Sizes(tuple(self.width * n for n in self.multiples), self.blocks, self.time)
        self.encoder = Encoder(self.latent_channels, sizes, self.dtype)
        self.decoder = Decoder(sizes, self.dtype)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns of a latent cell."""
        side = 2 ** len(self.time)
        return (2 ** sum(self.time), side, side)

    @property
    def encoder_reach(self) -> int:
        """A latent cell depends on the pixels of whole frames: only time is cut into pieces."""
        return WHOLE

    @property
    def decoder_reach(self) -> int:
        """Pixels depend on the latent cells of whole frames: only time is cut into pieces."""
        return WHOLE
