"""The video autoencoder of LTX-Video: 1 + 8n frames of pixels <-> 1 + n frames of latents.

HaCohen et al., arXiv:2501.00103, section 3.1, as Diffusers' `AutoencoderKLLTXVideo` computes it.
The encoder sees no later frame, and codes a video piece by piece. The decoder of the published
weights does see later frames, at every convolution one more: it decodes a whole video, or piece by
piece what comes out some latent frames later (`jvdm.vae.late`), which takes more work and bounded
memory. Later versions of it are the last step of denoising too: it is told how much noise the
latents have.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Frames, Int, Latents, PyTree
from jvdm.features import rms_normalize, sinusoids
from jvdm.keys import addressed_normal, named
from jvdm.vae.autoencoder import ChunkedEncoder, Decoded, Posterior
from jvdm.vae.conv import Carry, Features, Past, VideoConv
from jvdm.vae.late import Padded, Passing, Whole

Pad = Callable[[Features], Padded]
"""Puts the frames around those of a video that a convolution over three of them sees."""

Change = Literal["none", "conv", "space", "time", "both"]
"""How sides and frames are halved: by a convolution, or by moving cells into channels."""
STEPS: dict[Change, tuple[int, int, int]] = {
    "none": (1, 1, 1),
    "conv": (2, 2, 2),
    "space": (1, 2, 2),
    "time": (2, 1, 1),
    "both": (2, 2, 2),
}
TWICE = (2, 2, 2)
FREQUENCIES = 128  # pairs of sinusoids that a level is told in
_PIXEL_EPSILON, _LOG_VARIANCE_RANGE = 1e-8, (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class Down:
    """A level of the encoder.

    Attributes:
        blocks: Residual blocks, before the sides are halved.
        change: How they are.
        width: Channels after it.
    """

    blocks: int
    change: Change
    width: int


@dataclasses.dataclass(frozen=True)
class Up:
    """A level of the decoder.

    Attributes:
        blocks: Residual blocks, after sides and frames are doubled.
        doubles: Whether they are.
        width: Channels of the blocks.
        factor: Channels before, over `width`; others are changed by a residual block first.
        residual: Whether the input, with its channels moved into cells, is added.
        noise: Whether blocks add noise.
    """

    blocks: int
    doubles: bool
    width: int
    factor: int = 1
    residual: bool = False
    noise: bool = False


class Conv(nn.Module):
    """Convolution with zeros around a frame and what `pad` puts before and after the video."""

    features: int
    size: int = 3
    strides: tuple[int, int, int] = (1, 1, 1)
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, x: Features, pad: Pad) -> Float[Array, "B t h w c"]:
        """Returns frames of `features` channels."""
        size = (self.size, self.size, self.size)
        conv = VideoConv(self.features, size, self.strides, dtype=self.dtype, name="conv")
        return conv(pad(x) if self.size > 1 else x)


class ResidualBlock(nn.Module):
    """Two convolutions of normalised values, added to the input.

    With `noise`, one normal picture is added after each, in proportions of the channels; it is
    that of the block's name. With `told`, the normalised values are scaled and shifted.
    """

    features: int
    noise: bool = False
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(
        self,
        x: Features,
        pad: Pad,
        told: Float[Array, " _"] | None = None,
        wait: Callable[[Features], Features] | None = None,
    ) -> Float[Array, "B T H W c"]:
        """Returns frames of `features` channels; `wait` delays the input as both `pad` do."""
        vectors: list[tuple[Array, Array] | None] = [None, None]
        if told is not None:
            table = self.param("modulation", nn.initializers.normal(0.1), (4, x.shape[-1]))
            rows = told.reshape(4, -1) + table  # shift and scale, twice
            vectors = [(rows[0], rows[1]), (rows[2], rows[3])]
        h = x
        for index, vector in enumerate(vectors):
            h = nn.silu(_normalized(h, vector))
            h = Conv(self.features, dtype=self.dtype, name=f"conv_{index}")(h, pad)
            if self.noise:
                h = h + self._noise(index, h)
        if x.shape[-1] != self.features:
            norm = nn.LayerNorm(use_fast_variance=False, dtype=jnp.float32, name="short_norm")
            x = norm(x).astype(self.dtype)
            x = Conv(self.features, 1, dtype=self.dtype, name="short")(x, pad)
        return (x if wait is None else wait(x)) + h

    def _noise(self, index: int, h: Features) -> Float[Array, "1 1 H W C"]:
        scale = self.param(f"noise_{index}", nn.initializers.zeros, (self.features,))
        noise = injected(self.path, index, h.shape[2:4])
        return (noise[None, None, ..., None] * scale[None, None, None, None]).astype(h.dtype)


def injected(path: tuple[str, ...], index: int, size: tuple[int, ...]) -> Float[Array, "H W"]:
    """Returns the noise that the block of this name adds after a convolution, to every frame."""
    key = named(jax.random.key(0), "/".join((*path, f"noise_{index}")))
    return jax.random.normal(key, size, jnp.float32)


def _normalized(x: Features, vectors: tuple[Array, Array] | None) -> Features:
    """Divides by the root mean square of a cell's channels, then shifts and scales them."""
    y = rms_normalize(x, _PIXEL_EPSILON)
    if vectors is not None:
        shift, scale = vectors
        y = y * (1.0 + scale)[None, None, None, None] + shift[None, None, None, None]
    return y.astype(x.dtype)


def into_channels(x: Features, sizes: tuple[int, int, int]) -> Float[Array, "B t h w c"]:
    """Moves blocks of `sizes` frames, rows and columns into channels, old channels first."""
    batch, frames, height, width, channels = x.shape
    t, h, w = sizes
    x = x.reshape(batch, frames // t, t, height // h, h, width // w, w, channels)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(batch, frames // t, height // h, width // w, channels * t * h * w)


def from_channels(x: Features, sizes: tuple[int, int, int]) -> Float[Array, "B t h w c"]:
    """Inverse of `into_channels`."""
    batch, frames, height, width, _ = x.shape
    t, h, w = sizes
    x = x.reshape(batch, frames, height, width, -1, t, h, w)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, frames * t, height * h, width * w, -1)


class Halve(nn.Module):
    """Fewer cells, of which the first of a video is of one frame."""

    change: Change
    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Float[Array, "B t h w c"]:
        """Returns frames of `features` channels; a convolution keeps the channels."""
        steps = STEPS[self.change]
        if self.change == "conv":
            conv = Conv(x.shape[-1], strides=steps, dtype=self.dtype, name="conv")
            return conv(x, lambda x: _twice_first(past.before(x, 1, "edge"), past.starts))
        x = _twice_first(x, past.starts and steps[0] == 2)
        cells = steps[0] * steps[1] * steps[2]
        conv = Conv(self.features // cells, dtype=self.dtype, name="conv")
        y = into_channels(conv(x, lambda x: past.before(x, 2, "edge")), steps)
        moved = into_channels(x, steps)
        return y + moved.reshape(*y.shape, -1).mean(-1).astype(y.dtype)


def _twice_first(x: Features, applies: bool) -> Float[Array, "B t H W C"]:
    return jnp.concatenate([x[:, :1], x], 1) if applies else x


class Encoder(nn.Module):
    """Pixels to mean and log-variance of latents."""

    latent_channels: int
    patch: int
    width: int
    downs: tuple[Down, ...]
    middle: int
    dtype: str

    @nn.compact
    def __call__(self, frames: Frames, carry: Carry | None) -> tuple[Posterior, Carry]:
        """Returns the distribution of the latents and the carry of the next chunk."""
        past = Past(carry)

        def pad(x: Features) -> Padded:
            return past.before(x, 2, "edge")

        def blocks(x: Features, count: int, name: str) -> Features:
            for index in range(count):
                block = ResidualBlock(x.shape[-1], dtype=self.dtype, name=f"{name}_{index}")
                x = block(x, pad)
            return x

        x = _patches(frames * 2.0 - 1.0, self.patch).astype(self.dtype)
        x = Conv(self.width, dtype=self.dtype, name="conv_in")(x, pad)
        for level, down in enumerate(self.downs):
            x = blocks(x, down.blocks, f"level_{level}")
            if down.change != "none":
                x = Halve(down.change, down.width, self.dtype, name=f"down_{level}")(x, past)
            if x.shape[-1] != down.width:
                x = ResidualBlock(down.width, dtype=self.dtype, name=f"widen_{level}")(x, pad)
        x = nn.silu(_normalized(blocks(x, self.middle, "middle"), None))
        x = Conv(self.latent_channels + 1, dtype=self.dtype, name="conv_out")(x, pad)
        mean, log_variance = jnp.split(x.astype(jnp.float32), [self.latent_channels], -1)
        return Posterior(mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)), tuple(past.after)


def _patches(x: Features, side: int) -> Float[Array, "B T h w c"]:
    """Moves squares of pixels into channels: by channel, then column, then row."""
    batch, frames, height, width, channels = x.shape
    x = x.reshape(batch, frames, height // side, side, width // side, side, channels)
    x = x.transpose(0, 1, 2, 4, 6, 5, 3)
    return x.reshape(batch, frames, height // side, width // side, channels * side * side)


def _pixels(x: Features, side: int) -> Float[Array, "B T h w c"]:
    """Inverse of `_patches`."""
    batch, frames, height, width, _ = x.shape
    x = x.reshape(batch, frames, height, width, -1, side, side)
    x = x.transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(batch, frames, height * side, width * side, -1)


class Decoder(nn.Module):
    """Latents to pixels; `level` is the noise level that it is told, None where it is not."""

    patch: int
    width: int
    middle: int
    middle_noise: bool
    ups: tuple[Up, ...]
    causal: bool
    level: float | None
    dtype: str

    @nn.compact
    def __call__(self, latents: Latents, flow: Whole) -> Decoded:
        """Returns frames of about 0..1, of a whole video or of one that is passing."""
        sinusoids, pad = self._sinusoids(), functools.partial(self._pad, flow)
        x = Conv(self.width, dtype=self.dtype, name="conv_in")(latents.astype(self.dtype), pad)
        x = self._blocks(flow, x, "middle", self.middle, self.middle_noise, sinusoids)
        for level, up in enumerate(self.ups):
            if x.shape[-1] != up.width * up.factor:
                block = ResidualBlock(up.width, up.noise, self.dtype, name=f"enter_{level}")
                x = block(x, pad, wait=self._wait(flow, 2))
            if up.doubles:
                x = self._doubled(flow, x, up, f"up_{level}")
            x = self._blocks(flow, x, f"level_{level}", up.blocks, up.noise, sinusoids)
        vectors = None
        if sinusoids is not None:
            table = self.param("modulation", nn.initializers.normal(0.1), (2, x.shape[-1]))
            rows = self._told("told", 2 * x.shape[-1], sinusoids).reshape(2, -1) + table
            vectors = (rows[0], rows[1])
        x = nn.silu(_normalized(x, vectors))
        x = Conv(3 * self.patch**2, dtype=self.dtype, name="conv_out")(x, pad)
        return (_pixels(x.astype(jnp.float32), self.patch) + 1.0) / 2.0

    def _pad(self, flow: Whole, x: Features) -> Padded:
        return flow.around(x, *((2, 0) if self.causal else (1, 1)))

    def _wait(self, flow: Whole, convolutions: int) -> Callable[[Features], Features]:
        """Returns what delays frames as so many convolutions do."""
        return lambda x: flow.waiting(x, 0 if self.causal else convolutions)

    def _blocks(
        self,
        flow: Whole,
        x: Features,
        name: str,
        count: int,
        noise: bool,
        sinusoids: Array | None,
    ) -> Features:
        """Residual blocks that are told the level alike."""
        told = None
        if sinusoids is not None:
            told = self._told(f"{name}_told", 4 * x.shape[-1], sinusoids)
        for index in range(count):
            block = ResidualBlock(x.shape[-1], noise, self.dtype, name=f"{name}_{index}")
            x = block(x, functools.partial(self._pad, flow), told, self._wait(flow, 2))
        return x

    def _doubled(self, flow: Whole, x: Features, up: Up, name: str) -> Float[Array, "B t h w c"]:
        """Doubles sides and frames; the first frame of a video stays one."""
        conv = Conv(8 * up.width, dtype=self.dtype, name=name)
        y = from_channels(conv(x, functools.partial(self._pad, flow)), TWICE)
        if up.residual:
            moved = from_channels(self._wait(flow, 1)(x), TWICE)
            y = y + jnp.tile(moved, up.width // moved.shape[-1])
        return flow.doubled(y)

    def _sinusoids(self) -> Float[Array, " I"] | None:
        """Returns the level in sinusoids, in the learnt scale that is 1000."""
        if self.level is None:
            return None
        scale = self.param("level_scale", nn.initializers.constant(1000.0), ())
        return sinusoids(self.level * scale, FREQUENCIES)

    def _told(self, name: str, size: int, sinusoids: Array) -> Float[Array, " O"]:
        """Returns the level as blocks are told it: two layers."""
        hidden = nn.Dense(size, dtype=jnp.float32, name=f"{name}_hidden")(sinusoids)
        return nn.Dense(size, dtype=jnp.float32, name=f"{name}_out")(nn.silu(hidden))


class LTXVAE(ChunkedEncoder):
    """Video autoencoder of LTX-Video; the defaults are those of version 0.9.0.

    Attributes:
        latent_channels: Channels of a latent cell.
        patch: Side of the squares of pixels that become channels first.
        width: Channels of the encoder at its first level.
        downs: Levels of the encoder.
        middle: Residual blocks after them.
        decoder_width: Channels of the decoder at its first level.
        decoder_middle: Residual blocks there.
        middle_noise: Whether they add noise.
        ups: Levels of the decoder.
        causal: Whether the decoder sees no later frame.
        level: Noise level, 0 clean to 1, at which latents are decoded; None where the decoder
            is not told one (0.9.0).
        noise: Share of noise that they are mixed with before, where it is told one. The noise is
            that of a cell's place and frame, the same in every run.
        dtype: Number type of the computation; latents and frames are float32.
    """

    latent_channels: int = 128
    patch: int = 4
    width: int = 128
    downs: tuple[Down, ...] = (
        Down(4, "conv", 256),
        Down(3, "conv", 512),
        Down(3, "conv", 512),
        Down(3, "none", 512),
    )
    middle: int = 4
    decoder_width: int = 512
    decoder_middle: int = 4
    middle_noise: bool = False
    ups: tuple[Up, ...] = (
        Up(3, False, 512),
        Up(3, True, 512),
        Up(3, True, 256),
        Up(4, True, 128),
    )
    causal: bool = False
    level: float | None = None
    noise: float = 0.025
    dtype: str = "bfloat16"

    @property
    def features_per_pixel(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Channels of its widest features over the pixels that a cell of these stands for."""
        return max(self.width, self.ups[-1].width) / self.patch**2

    def setup(self) -> None:  # noqa: D102
        sizes = (self.latent_channels, self.patch, self.width, self.downs, self.middle)
        self.encoder = Encoder(*sizes, self.dtype)
        rules = (self.middle_noise, self.ups, self.causal, self.level)
        self.decoder = Decoder(
            self.patch, self.decoder_width, self.decoder_middle, *rules, self.dtype
        )

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns of a latent cell."""
        time, rows, columns = np.prod([STEPS[down.change] for down in self.downs], 0).tolist()
        return (time, self.patch * rows, self.patch * columns)

    def decode(self, latents: Latents) -> Decoded:
        """Decodes `F` latent frames to `1 + s (F - 1)` frames of about 0..1, not clipped.

        Raises:
            ShapeError: If the latents have other channels than the model.
        """
        self.check_channels(latents)
        return self.decoder(self._noised(latents, jnp.int32(0)), Whole())

    def decode_late(
        self, latents: Latents, carry: PyTree, first: Int[Array, ""], total: Int[Array, ""]
    ) -> tuple[Decoded, Int[Array, ""], PyTree]:
        """Decodes the next latent frames of a video as far as those that follow do not matter.

        Args:
            latents: `F` latent frames; whatever they are after the last of the video.
            carry: None starts a video; else what the call for the frames before returned.
            first: Which latent frame of the video the first of these is.
            total: Latent frames of the video.

        Returns:
            `s F` frames; which frame of the video the first of these is, below 0 where it comes
            before all; and the next carry. Those before the first or after the last mean nothing.

        Raises:
            ShapeError: If the latents have other channels than the model.
        """
        self.check_channels(latents)
        flow = Passing(carry, first, total)
        frames = self.decoder(self._noised(latents, first), flow)
        return frames, flow.first, tuple(flow.after)

    def _noised(self, latents: Latents, first: Int[Array, ""]) -> Latents:
        """Mixes latents with the noise of their places, where the decoder is told a level."""
        if self.level is None or not self.noise:
            return latents
        key, frames = named(jax.random.key(0), "decode"), first + jnp.arange(latents.shape[1])
        drawn = addressed_normal(key, jnp.zeros(1, jnp.int32), frames, latents.shape[2:])
        return (1.0 - self.noise) * latents + self.noise * drawn
