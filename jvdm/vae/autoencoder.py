"""What all causal video autoencoders have in common: sizes, and the distribution of latents."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Frames, Key, Latents, PyTree
from jvdm.errors import ShapeError

WHOLE = 1 << 20  # cells: a cell depends on all of a frame, and only time is cut into pieces
Decoded = Float[Array, "B T h w 3"]  # `Frames` with letters of their own beside latents'


class Posterior(NamedTuple):
    """Normal distribution of the latents; one variance may be shared by the channels of a cell."""

    mean: Float[Array, "B F H W C"]
    log_variance: Float[Array, "B F H W _"]

    def sample(self, key: Key, scale: float = 1.0) -> Latents:
        """Draws latents with float32 noise of `scale` standard deviations."""
        noise = jax.random.normal(key, self.mean.shape, jnp.float32)
        return self.mean + scale * jnp.exp(0.5 * self.log_variance) * noise

    def divergence(self) -> Float[Array, ""]:
        """Mean Kullback-Leibler divergence from the standard normal, in nats per value."""
        variance = jnp.exp(self.log_variance)
        return 0.5 * jnp.mean(self.mean**2 + variance - 1.0 - self.log_variance)


class Autoencoder:
    """Base of autoencoders that code the first frame alone and then groups of frames.

    A subclass is a Linen module with the members that are only declared here; what
    it accepts and what comes of it is asked from an instance.
    """

    strides: tuple[int, int, int]
    """Pixel frames, rows and columns of a latent cell."""
    latent_channels: int
    features_per_pixel: float
    """Channels of its widest features over the pixels that a cell of these stands for."""
    bind: Any  # Linen's, as that of every subclass

    def latent_frames(self, num_frames: int) -> int:
        """Returns the latent frames of a video of `num_frames` frames.

        Raises:
            ShapeError: If `num_frames` is not one more than a multiple of the stride.
        """
        check_multiple("num_frames", num_frames, self.strides[0], offset=1)
        return self.latents_of_prefix(num_frames)

    def num_frames(self, latent_frames: int) -> int:
        """Returns the pixel frames that `latent_frames` latent frames decode to."""
        if latent_frames < 1:
            raise ShapeError(f"latent_frames is {latent_frames}", "a video needs 1 or more")
        return self.prefix_of_latents(latent_frames)

    def latents_of_prefix(self, num_frames: int) -> int:
        """Returns how many latent frames the first `num_frames` frames of a video determine."""
        return 1 + (num_frames - 1) // self.strides[0] if num_frames > 0 else 0

    def prefix_of_latents(self, latent_frames: int) -> int:
        """Returns how many frames the first `latent_frames` latent frames stand for, 0 for 0."""
        return 1 + self.strides[0] * (latent_frames - 1) if latent_frames > 0 else 0

    def latent_size(self, height: int, width: int, patch: int = 1) -> tuple[int, int]:
        """Returns height and width in latent cells.

        Args:
            height: In pixels.
            width: In pixels.
            patch: Side of the patches of a model in cells, into which the cells must go.

        Raises:
            ShapeError: If a side is no multiple of the stride, times `patch`; it names the
                two nearest that are.
        """
        _, stride_y, stride_x = self.strides
        check_multiple("height", height, stride_y * patch)
        check_multiple("width", width, stride_x * patch)
        return height // stride_y, width // stride_x

    def check_channels(self, latents: Latents) -> None:
        """Raises `ShapeError` unless latents have the channels of this autoencoder."""
        channels = latents.shape[-1]
        if channels != self.latent_channels:
            raise ShapeError(
                f"latents have {channels} channels",
                f"this autoencoder has {self.latent_channels}",
                "use the autoencoder that made the latents",
            )


class ChunkedEncoder(Autoencoder, nn.Module):
    """Base of autoencoders that encode a video in pieces; a subclass says how one is decoded.

    It sets up `encoder`, a module that takes what is next of a video, and the carry that it
    returned before.
    """

    @property
    def encoder_reach(self) -> int:
        """Latent cells to each side of a latent cell whose pixels it depends on."""
        return WHOLE

    def encode(self, frames: Frames) -> Posterior:
        """Encodes a whole video, `1 + s n` frames to `1 + n` latent ones; see `encode_chunk`."""
        return self.encode_chunk(frames, None)[0]

    def encode_chunk(self, frames: Frames, carry: PyTree) -> tuple[Posterior, PyTree]:
        """Encodes the next frames of a video.

        Args:
            frames: RGB in 0..1, `1 + s n` frames when `carry` is None, which starts a video,
                else `s n`, for a stride of `s`; height and width are multiples of theirs.
            carry: What the call for the frames just before returned.

        Returns:
            The distribution of the new latent frames, float32, and the carry for the next call.

        Raises:
            ShapeError: If a size does not fit; it names the two nearest that do.
        """
        _, num_frames, height, width, _ = frames.shape
        if carry is None:
            self.latent_frames(num_frames)
        else:
            check_multiple("num_frames of a later chunk", num_frames, self.strides[0])
        self.latent_size(height, width)
        return self.encoder(frames, carry)

    def decode(self, latents: Latents) -> Decoded:
        """Decodes a whole video."""
        raise NotImplementedError

    def __call__(self, frames: Frames) -> Decoded:
        """Reconstructs a video from the mean of its latents; `init` runs this."""
        return self.decode(self.encode(frames).mean)


class ChunkedAutoencoder(ChunkedEncoder):
    """Base of autoencoders that decode a video in pieces too; a subclass sets up `decoder`."""

    @property
    def decoder_reach(self) -> int:
        """Latent cells to each side of a latent cell that its pixels depend on."""
        return WHOLE

    def decode(self, latents: Latents) -> Decoded:
        """Decodes `F` latent frames to `1 + s (F - 1)` frames of about 0..1, not clipped."""
        return self.decode_chunk(latents, None)[0]

    def decode_chunk(self, latents: Latents, carry: PyTree) -> tuple[Decoded, PyTree]:
        """Decodes the next latent frames of a video.

        Args:
            latents: `F` latent frames, not standardised.
            carry: None starts a video; else what the call for the frames before returned.

        Returns:
            `1 + s (F - 1)` frames when `carry` is None, else `s F`; and the next carry.

        Raises:
            ShapeError: If the latents have other channels than the model.
        """
        self.check_channels(latents)
        return self.decoder(latents, carry)


def check_multiple(name: str, value: int, stride: int, offset: int = 0) -> None:
    """Raises `ShapeError` unless `value` is positive and `offset` more than a multiple of `stride`.

    The error names the two nearest values that fit.
    """
    if value > 0 and (value - offset) % stride == 0:
        return
    smallest = offset or stride
    below = value - (value - offset) % stride
    nearest = [n for n in (below, below + stride) if n >= smallest] or [smallest]
    form = f"{stride}n + {offset}" if offset else f"a multiple of {stride}"
    raise ShapeError(
        f"{name} is {value}",
        f"it must be {form}",
        f"the nearest that fit: {' and '.join(map(str, nearest))}",
    )
