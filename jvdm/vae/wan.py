"""The video autoencoders of Wan 2.1 and 2.2: 1 + 4n frames of pixels <-> 1 + n frames of latents.

Wan Team, arXiv:2503.20314, section 4.1; computed as Diffusers' `AutoencoderKLWan` does it. There
a video is coded frame by frame with caches; here whatever number of frames is given goes through
at once, and what the convolutions in time saw last goes on to the next call. The result is the
same for any division (`encode_chunk`, `decode_chunk`).

Wan 2.2 folds squares of pixels into channels, and every change of rate has a way around it
without weights: averages on the way down, copies on the way up.

Encoder and decoder have two parts each. One works at the resolution of the latents and has
attention among all cells of a frame; the other, nearly all of the work, has convolutions alone.
So a frame can be cut into tiles where the convolutions are (`jvdm.vae.tiling`), with the result
of the whole frame.
"""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Frames, Latents
from jvdm.features import fold, unfold
from jvdm.parallel import read, token_parts
from jvdm.parallel.activations import used
from jvdm.vae.autoencoder import ChunkedAutoencoder, Decoded, Posterior
from jvdm.vae.conv import Carry, DoublingConv, Features, Past, VideoConv
from pallas_kernels.convolution import activated, normalized

Carries = tuple[Carry, Carry]
"""Of the two parts of an encoder or decoder, in the order in which they are applied."""

_LOG_VARIANCE_RANGE = (-30.0, 20.0)


class CausalConv(nn.Module):
    """Convolution over a frame, the frames before and the cells around."""

    features: int
    size: tuple[int, int, int] = (3, 3, 3)
    dtype: str = "bfloat16"

    def setup(self) -> None:  # noqa: D102
        self.conv = VideoConv(self.features, self.size, dtype=self.dtype)

    def __call__(self, x: Features, past: Past) -> Float[Array, "B T H W c"]:
        """Returns as many frames of `features` channels."""
        if self.size == (3, 3, 3):
            return self.conv.causal(x, past)[0]
        return self.conv(past.before(x, self.size[0] - 1) if self.size[0] > 1 else x)


class Norm(nn.Module):
    """Divides by the root mean square of the channels of a cell, and scales them."""

    channels: int

    def setup(self) -> None:  # noqa: D102
        self.gain = self.param("gain", nn.initializers.ones, (self.channels,), jnp.float32)

    def __call__(self, x: Features) -> Features:
        """Returns the normalised input in its own dtype."""
        return normalized(x, self.gain)

    def active(self, x: Features) -> Features:
        """Returns the same through SiLU."""
        return activated(x, self.gain, alone=used() is None)


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input.

    What is made of a sum of a convolution, its norm through SiLU, a kernel computes where the sum
    is: `through` tells a block the norm of the next.
    """

    channels: int
    features: int
    dtype: str

    def setup(self) -> None:  # noqa: D102
        self.norm_0, self.norm_1 = Norm(self.channels), Norm(self.features)
        self.conv_0 = CausalConv(self.features, dtype=self.dtype)
        self.conv_1 = CausalConv(self.features, dtype=self.dtype)
        if self.channels != self.features:
            self.short = CausalConv(self.features, (1, 1, 1), self.dtype)

    def __call__(self, x: Features, past: Past) -> Float[Array, "B T H W c"]:
        """Returns frames of `features` channels."""
        return self.then(x, self.norm_0.active(x), past)[0]

    def then(
        self, x: Features, active: Features, past: Past, **more: Array | bool
    ) -> tuple[Float[Array, "B T H W c"], ...]:
        """Returns frames, and what is made of them: see `causal_conv`.

        Args:
            x: The input.
            active: Its norm through SiLU.
            past: What comes before.
            more: What `causal_conv` is given besides.
        """
        short = x if self.channels == self.features else self.short(x, past)
        (h,) = self.conv_0.conv.causal(active, past, gain=self.norm_1.gain, plain=False)
        return self.conv_1.conv.causal(h, past, added=short, **more)


def through(
    blocks: list[ResidualBlock], x: Features, past: Past, norm: Norm | None = None
) -> Float[Array, "B T H W c"]:
    """Returns what blocks make of features one after the other, with a `norm` that through SiLU."""
    if not blocks:
        return x if norm is None else norm.active(x)
    active = blocks[0].norm_0.active(x)
    for block, follower in zip(blocks, blocks[1:], strict=False):
        x, active = block.then(x, active, past, gain=follower.norm_0.gain)
    more = {} if norm is None else {"gain": norm.gain, "plain": False}
    return blocks[-1].then(x, active, past, **more)[0]


def _blocks(x: Features, width: int, count: int, name: str, dtype: str) -> list[ResidualBlock]:
    """Returns the blocks of a level, of the module that is called."""
    given = (x.shape[-1], *(width,) * count)[:count]
    return [ResidualBlock(n, width, dtype, name=f"{name}_{i}") for i, n in enumerate(given)]


class FrameAttention(nn.Module):
    """Every cell of a frame attends to all cells of the frame, with one head."""

    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Returns the input with what was read added."""
        batch, frames, height, width, channels = x.shape
        h = Norm(channels, name="norm")(x).reshape(batch * frames, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv[:, :, None], 3, -1)
        h = nn.Dense(channels, dtype=self.dtype, name="out")(read(q, k, v, None)[:, :, 0])
        return x + h.reshape(x.shape)


class Middle(nn.Module):
    """Residual blocks with attention between them, at the rate of the latents."""

    dtype: str

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Features:
        """Returns features of the same shape."""
        sizes = (x.shape[-1], x.shape[-1], self.dtype)
        x = ResidualBlock(*sizes, name="block_0")(x, past)
        x = FrameAttention(self.dtype, name="attention")(x)
        return ResidualBlock(*sizes, name="block_1")(x, past)


class Down(nn.Module):
    """Halves the sides, and with `time` the frames but the first of a video."""

    time: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Features, past: Past) -> Float[Array, "B t h w C"]:
        """Returns `1 + n` frames for `1 + 2n` that start a video, else `n` for `2n`."""
        channels = x.shape[-1]
        space = VideoConv(
            channels, (1, 3, 3), (1, 2, 2), ((0, 1), (0, 1)), self.dtype, name="space"
        )
        x = space(x)
        if not self.time:
            return x
        first, x = x[:, :1], past.before(x, 1, "nothing")
        y = VideoConv(channels, (3, 1, 1), (2, 1, 1), dtype=self.dtype, name="time")(x)
        return jnp.concatenate([first, y], 1) if past.starts else y


class Up(nn.Module):
    """Doubles the sides, and with `time` the frames but the first."""

    features: int
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
        if token_parts() > 1:  # rows between cells would lie on two devices
            x = x.repeat(2, 2).repeat(2, 3)
            return VideoConv(self.features, (1, 3, 3), dtype=self.dtype, name="space")(x)
        return DoublingConv(self.features, self.dtype, name="space")(x)


def averaged(
    x: Features, features: int, rates: tuple[int, int], starts: bool
) -> Float[Array, "B t h w c"]:
    """Returns what goes around a level of the encoder: means of cells, frames and channels.

    Args:
        x: What the level is given.
        features: Channels that it returns.
        rates: By how much it divides the frames, and the sides.
        starts: Whether a video starts here; a frame of zeros is then before it.
    """
    frames, side = rates
    if starts and frames > 1:
        x = jnp.pad(x, ((0, 0), (frames - 1, 0), (0, 0), (0, 0), (0, 0)))
    batch, count, height, width, channels = x.shape
    count, height, width = count // frames, height // side, width // side
    x = x.reshape(batch, count, frames, height, side, width, side, channels)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, count, height, width, features, -1)
    return jnp.mean(x, -1, dtype=jnp.float32).astype(x.dtype)


def copied(
    x: Features, features: int, rates: tuple[int, int], starts: bool
) -> Float[Array, "B t h w c"]:
    """Returns what goes around a level of the decoder: copies, from channels to cells and frames.

    Args:
        x: What the level is given.
        features: Channels that it returns.
        rates: By how much it multiplies the frames, and the sides.
        starts: Whether a video starts here; its first frame stays alone.
    """
    frames, side = rates
    batch, count, height, width, channels = x.shape
    x = x.repeat(features * frames * side * side // channels, -1)
    x = x.reshape(batch, count, height, width, features, frames, side, side)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(batch, count * frames, height * side, width * side, features)
    return x[:, frames - 1 :] if starts else x


class Sizes(NamedTuple):
    """What encoder and decoder share: channels per level from pixels on, and blocks of a level."""

    widths: tuple[int, ...]
    blocks: int
    time: tuple[bool, ...]
    """Between which levels the frames are halved too."""
    patch: int
    """Side of the squares of pixels that are channels."""
    around: bool
    """Whether changes of rate have a way around them."""

    def rates(self, level: int) -> tuple[int, int]:
        """Returns by how much frames and sides are divided after a level."""
        return (1 + self.time[level], 2) if level < len(self.time) else (1, 1)


class EncoderCells(nn.Module):
    """From pixels to features of latent cells, by convolutions alone."""

    sizes: Sizes
    dtype: str

    @nn.compact
    def __call__(
        self, frames: Frames, carry: Carry | None
    ) -> tuple[Float[Array, "B F h w C"], Carry]:
        """Returns features and the carry of the next chunk."""
        past, (widths, blocks, time, patch, around) = Past(carry), self.sizes
        x = fold((frames * 2.0 - 1.0).astype(self.dtype), patch)
        x = CausalConv(widths[0], dtype=self.dtype, name="conv_in")(x, past)
        for level, width in enumerate(widths):
            given = x
            x = through(_blocks(x, width, blocks, f"level_{level}", self.dtype), x, past)
            if level < len(time):
                x = Down(time[level], self.dtype, name=f"down_{level}")(x, past)
            if around:
                x = x + averaged(given, width, self.sizes.rates(level), past.starts)
        return x, tuple(past.after)


class EncoderFrames(nn.Module):
    """From features of latent cells to mean and log-variance; cells of a frame see each other."""

    latent_channels: int
    dtype: str

    @nn.compact
    def __call__(self, x: Features, carry: Carry | None) -> tuple[Posterior, Carry]:
        """Returns the distribution of the latents and the carry of the next chunk."""
        past, point = Past(carry), (1, 1, 1)
        x = Middle(self.dtype, name="middle")(x, past)
        x = Norm(x.shape[-1], name="norm_out").active(x)
        size = 2 * self.latent_channels
        x = CausalConv(size, dtype=self.dtype, name="conv_out")(x, past)
        x = CausalConv(size, point, self.dtype, name="moments")(x, past).astype(jnp.float32)
        mean, log_variance = jnp.split(x, 2, -1)
        return Posterior(mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)), tuple(past.after)


class DecoderFrames(nn.Module):
    """From latents to features of latent cells; cells of a frame see each other."""

    width: int
    dtype: str

    @nn.compact
    def __call__(
        self, latents: Latents, carry: Carry | None
    ) -> tuple[Float[Array, "B F H W D"], Carry]:
        """Returns features and the carry of the next chunk."""
        past, point = Past(carry), (1, 1, 1)
        x = latents.astype(self.dtype)
        x = CausalConv(x.shape[-1], point, self.dtype, name="latents")(x, past)
        x = CausalConv(self.width, dtype=self.dtype, name="conv_in")(x, past)
        return Middle(self.dtype, name="middle")(x, past), tuple(past.after)


class DecoderCells(nn.Module):
    """From features of latent cells to pixels, by convolutions alone."""

    sizes: Sizes
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B F H W D"], carry: Carry | None) -> tuple[Decoded, Carry]:
        """Returns frames of about 0..1 and the carry of the next chunk."""
        past, (widths, blocks, time, patch, around) = Past(carry), self.sizes
        for level in reversed(range(len(widths))):
            given, name, width = x, len(widths) - 1 - level, widths[level]
            row = _blocks(x, width, blocks + 1, f"level_{name}", self.dtype)
            x = through(row, x, past, None if level else Norm(width, name="norm_out"))
            if level > 0:
                features = width if around else width // 2
                x = Up(features, time[level - 1], self.dtype, name=f"up_{name}")(x, past)
                if around:
                    x = x + copied(given, width, self.sizes.rates(level - 1), past.starts)
        x = CausalConv(3 * patch**2, dtype=self.dtype, name="conv_out")(x, past)
        return (unfold(x, patch).astype(jnp.float32) + 1.0) / 2.0, tuple(past.after)


class Encoder(nn.Module):
    """Pixels to mean and log-variance of latents, by way of features of latent cells."""

    latent_channels: int
    sizes: Sizes
    dtype: str

    def setup(self) -> None:  # noqa: D102
        self.cells = EncoderCells(self.sizes, self.dtype)
        self.frames = EncoderFrames(self.latent_channels, self.dtype)

    def __call__(self, frames: Frames, carry: Carries | None) -> tuple[Posterior, Carries]:
        """Returns the distribution of the latents and the carry of the next chunk."""
        before = carry or (None, None)
        x, first = self.cells(frames, before[0])
        posterior, second = self.frames(x, before[1])
        return posterior, (first, second)


class Decoder(nn.Module):
    """Latents to pixels, by way of features of latent cells."""

    sizes: Sizes
    dtype: str

    def setup(self) -> None:  # noqa: D102
        self.frames = DecoderFrames(self.sizes.widths[-1], self.dtype)
        self.cells = DecoderCells(self.sizes, self.dtype)

    def __call__(self, latents: Latents, carry: Carries | None) -> tuple[Decoded, Carries]:
        """Returns frames of about 0..1 and the carry of the next chunk."""
        before = carry or (None, None)
        x, first = self.frames(latents, before[0])
        frames, second = self.cells(x, before[1])
        return frames, (first, second)


class WanVAE(ChunkedAutoencoder):
    """Causal video autoencoder of Wan; the defaults are those of the weights of 2.1.

    That of 2.2 has `latent_channels` 48, `width` 160, `decoder_width` 256, `patch` 2 and `around`.

    Attributes:
        latent_channels: Channels of a latent cell.
        width: Channels at the resolution of pixels.
        decoder_width: Those of the decoder; None is as many.
        multiples: Channels of each level over `width`; a level has half the sides of the last.
        blocks: Residual blocks of a level of the encoder; the decoder has one more.
        time: After which levels of the encoder the frames are halved.
        patch: Side of the squares of pixels that are channels.
        around: Whether changes of rate have a way around them.
        dtype: Number type of the computation; latents and frames are float32.
    """

    latent_channels: int = 16
    width: int = 96
    decoder_width: int | None = None
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time: tuple[bool, ...] = (False, True, True)
    patch: int = 1
    around: bool = False
    dtype: str = "bfloat16"

    tile: ClassVar[tuple[int, int]] = (64, 64)
    """Latent cells of a tile, over which the border that is computed beside it is not much."""

    @property
    def features_per_pixel(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Channels of its widest features over the pixels that a cell of these stands for."""
        return max(self.width, self.decoder_width or 0) / self.patch**2

    def setup(self) -> None:  # noqa: D102
        sizes, wide = self._sizes(self.width), self._sizes(self.decoder_width or self.width)
        self.encoder = Encoder(self.latent_channels, sizes, self.dtype)
        self.decoder = Decoder(wide, self.dtype)

    def encode_cells(self, frames: Frames, carry: Carry | None) -> tuple[Array, Carry]:
        """The first part of `encode_chunk`, of frames or of windows of them."""
        return self.encoder.cells(frames, carry)

    def encode_frames(self, x: Features, carry: Carry | None) -> tuple[Posterior, Carry]:
        """The second part of `encode_chunk`, of whole frames of features."""
        return self.encoder.frames(x, carry)

    def decode_frames(self, latents: Latents, carry: Carry | None) -> tuple[Array, Carry]:
        """The first part of `decode_chunk`, of whole frames."""
        return self.decoder.frames(latents, carry)

    def decode_cells(self, x: Features, carry: Carry | None) -> tuple[Array, Carry]:
        """The second part of `decode_chunk`, of frames of features or of windows of them."""
        return self.decoder.cells(x, carry)

    def _sizes(self, width: int) -> Sizes:
        widths = tuple(width * n for n in self.multiples)
        return Sizes(widths, self.blocks, self.time, self.patch, self.around)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns of a latent cell."""
        side = self.patch * 2 ** len(self.time)
        return (2 ** sum(self.time), side, side)

    @property
    def encoder_reach(self) -> int:
        """Latent cells to each side whose pixels the first part of the encoder sees."""
        reach = 0  # to the right, in cells of a level, from the latents to the pixels
        for level in reversed(range(len(self.multiples))):
            # A cell is the upper left one of the four, and the convolution sees three.
            reach = 2 * reach + 1 if level < len(self.time) else reach
            reach += 2 * self.blocks
        return -(-(reach + 1) // 2 ** len(self.time))

    @property
    def decoder_reach(self) -> int:
        """Latent cells to each side whose features the second part of the decoder sees."""
        reach = 1  # in cells of a level, from the pixels to the latents
        for level in range(len(self.multiples)):
            reach += 2 * (self.blocks + 1)
            reach = -(-(reach + 1) // 2) if level < len(self.time) else reach
        return reach
