"""Parts of a causal video autoencoder: convolution in space, mixing in time, changes of rate.

Whatever looks back in time takes the frames before as an argument and returns
those that the next chunk needs, so that a long video can be coded in pieces and
the result is that of the whole. A chunk without context starts a video.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike

from jvdm.arrays import Array, Float
from jvdm.features import rms_normalize
from jvdm.parallel.activations import used
from pallas_kernels import norm_silu, serves_norm_silu
from pallas_kernels.convolution import causal_conv, valid_conv

TAPS = 3  # frames that one temporal mix sees, the newest is the frame itself
Features = Float[Array, "B T H W C"]
"""Channels of every cell of a video."""

Context = Float[Array, "B 2 H W C"]
"""The `TAPS - 1` frames that a temporal mix saw last."""

Carry = tuple[Float[Array, "B _ _ _ _"], ...]
"""Frames that each convolution in time saw last, in the order in which they are applied."""


class Past:
    """What the convolutions of one call take over from the last one, and hand on."""

    def __init__(self, carry: Carry | None):
        self.starts = carry is None
        self._before = list(carry or ())
        self.after: list[Array] = []

    def before(
        self, x: Features, count: int, start: Literal["zeros", "edge", "nothing"] = "zeros"
    ) -> Float[Array, "B t H W C"]:
        """Returns `x` with the `count` frames before it, or what is there where a video starts.

        That is zeros, its first frame again and again, or nothing.
        """
        if not self.starts:
            x = jnp.concatenate([self._before[len(self.after)].astype(x.dtype), x], 1)
        elif start != "nothing":
            mode = "constant" if start == "zeros" else "edge"
            x = jnp.pad(x, ((0, 0), (count, 0), (0, 0), (0, 0), (0, 0)), mode)
        self.after.append(x[:, x.shape[1] - count :])
        return x

    def taken(self, x: Features, count: int) -> Float[Array, "B t H W C"] | None:
        """Returns the `count` frames before `x` by themselves; None, for zeros, at a start."""
        before = None if self.starts else self._before[len(self.after)].astype(x.dtype)
        if x.shape[1] < count:  # what comes before the next frames is of both
            self.before(x, count)
        else:
            self.after.append(x[:, x.shape[1] - count :])
        return before


def fan_in_normal(gain: float = 1.0) -> nn.initializers.Initializer:
    """Normal initialiser with standard deviation `gain / sqrt(fan in)`."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


class VideoConv(nn.Module):
    """Convolution in time, height and width that looks as far back in time as it is told to.

    Attributes:
        features: Channels of the result.
        size: Taps in time, height and width.
        strides: Steps along these axes.
        around: Zeros before and after the rows and columns; half of the taps if None. In time
            there are none, and the result has `size[0] - 1` frames less.
        dtype: Number type of the computation.
    """

    features: int
    size: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    around: tuple[tuple[int, int], tuple[int, int]] | None = None
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def weights(self, channels: int) -> tuple[Array, Array]:
        """Returns the kernel and the bias for so many channels."""
        shape = (*self.size, channels, self.features)
        kernel = self.param("kernel", fan_in_normal(), shape, jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def __call__(self, x: Features) -> Float[Array, "B t h w c"]:
        """Returns `x` convolved, with a bias."""
        x, kernel, bias = promote_dtype(x, *self.weights(x.shape[-1]), dtype=self.dtype)
        rows, columns = (taps // 2 for taps in self.size[1:])
        around = self.around or ((rows, rows), (columns, columns))
        return valid_conv(x, kernel, self.strides, around) + bias[None, None, None, None]

    def causal(
        self, x: Features, past: Past, **more: Array | bool | None
    ) -> tuple[Float[Array, "B T H W c"], ...]:
        """Returns what `pallas_kernels.causal_conv` makes of `x` and the frames before, of zeros.

        Args:
            x: Frames; taps are 3 x 3 x 3.
            past: What comes before them.
            more: Whatever else is given to it.
        """
        x, kernel, bias = promote_dtype(x, *self.weights(x.shape[-1]), dtype=self.dtype)
        named = {**more, "implementation": None if used() is None else "xla"}  # can be divided
        return causal_conv(x, kernel, bias, past.taken(x, 2), **named)


class DoublingConv(nn.Module):
    """Doubles rows and columns by repetition, then convolves them with 3 x 3 taps, padded by zeros.

    Both are one convolution of 2 x 2 taps, whose windows straddle the cells: a cell that is read
    twice with two taps is read once with their sum. That takes 4 / 9 of the products, and the
    repeated cells are never written.
    """

    features: int
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "B T h w c"]:
        """Returns frames of twice the height and width, convolved, with a bias."""
        shape = (1, 3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", fan_in_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

        def joined(taps: Array) -> Array:
            """Returns taps of an axis as [which copy, cell that is read].

            Between two cells lie the second copy of one and the first of the next.
            """
            first, middle, last = taps
            return jnp.stack([jnp.stack([first + middle, last]), jnp.stack([first, middle + last])])

        kernel = joined(jnp.moveaxis(joined(kernel[0]), 2, 0)).transpose(3, 1, 4, 2, 0, 5)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        batch, frames, height, width, channels = x.shape
        # As a product (`valid_conv`) it would write what four taps see first.
        y = lax.conv_general_dilated(
            x.reshape(batch * frames, height, width, channels),
            kernel.reshape(2, 2, channels, 4 * self.features),
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(batch, frames, height + 1, width + 1, 2, 2, self.features)
        y = y.transpose(0, 1, 2, 4, 3, 5, 6)
        y = y.reshape(batch, frames, 2 * height + 2, 2 * width + 2, self.features)
        return y[:, :, 1:-1, 1:-1] + bias[None, None, None, None]


@jax.checkpoint
def _norm_silu(x: Features, scale: Float[Array, " C"]) -> Array:
    # Recomputed in the backward pass: the float32 values live in registers of one fused
    # kernel, and what is kept for the gradient is the input in the compute dtype.
    return jax.nn.silu(rms_normalize(x) * scale[None, None, None, None]).astype(x.dtype)


class NormSilu(nn.Module):
    """Root-mean-square norm over channels with a learned scale, then SiLU."""

    def __call__(self, x: Features) -> Features:
        """Returns `x` normalised, scaled and passed through SiLU."""
        return self.beside(x)[1]

    @nn.compact
    def beside(self, x: Features, ahead: int = 0) -> tuple[Features, Float[Array, "B t H W C"]]:
        """Returns `x`, to be read in its place, and what is made of it.

        `ahead` frames like the first come before that, where `serves_norm_silu(x)`.
        """
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        if serves_norm_silu(x):
            return norm_silu(x, scale, ahead)
        return x, _norm_silu(x, scale)


class SpatialConv(nn.Module):
    """3 x 3 convolution of every frame by itself, zero-padded at the borders."""

    features: int
    gain: float = 1.0
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "B T H W c"]:
        """Returns `x` with `features` channels."""
        init = fan_in_normal(self.gain)
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, kernel_init=init, name="conv")(x)


class TemporalMix(nn.Module):
    """Every frame becomes a linear function of itself and of the two frames before.

    Before the first frame of a video stands that frame itself, twice.
    """

    gain: float = 1.0
    dtype: DTypeLike = jnp.bfloat16

    def __call__(self, x: Features, context: Context | None) -> tuple[Features, Context]:
        """Returns the mixed frames and the context of the next chunk."""
        if context is None:
            context = jnp.broadcast_to(x[:, :1], (x.shape[0], TAPS - 1, *x.shape[2:]))
        return self.valid(jnp.concatenate([context, x], axis=1))

    @nn.compact
    def valid(self, x: Features) -> tuple[Float[Array, "B t H W C"], Context]:
        """Returns the same for frames that come after the two that the first of them sees."""
        batch, frames, height, width, channels = x.shape
        # Space is one axis here: a 2-D convolution needs no transpose and reads each frame
        # once, where a matrix product would need the three shifted copies side by side.
        flat = x.reshape(batch, frames, height * width, channels)
        mix = nn.Conv(
            channels,
            (TAPS, 1),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=fan_in_normal(self.gain),
            name="conv",
        )
        y = mix(flat).reshape(batch, -1, height, width, channels)
        return y, x[:, 1 - TAPS :]


class ResidualBlock(nn.Module):
    """Spatial convolution, then a causal temporal mix, added to the input."""

    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Features, context: Context | None) -> tuple[Features, Context]:
        """Returns the new features and the context of the next chunk."""
        x, h = NormSilu(name="norm_space").beside(x)
        h = SpatialConv(x.shape[-1], dtype=self.dtype, name="space")(h)
        norm = NormSilu(name="norm_time")
        mix = TemporalMix(gain=0.1, dtype=self.dtype, name="time")  # near the identity at first
        if context is None and serves_norm_silu(h):
            h, context = mix.valid(norm.beside(h, ahead=TAPS - 1)[1])
        else:
            h, context = mix(norm(h), context)
        return x + h, context


class Stage(nn.Module):
    """Residual blocks at one rate and width; their contexts are a tuple."""

    blocks: int
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: Features, contexts: tuple[Context, ...] | None
    ) -> tuple[Features, tuple[Context, ...]]:
        """Returns the new features and one context per block."""
        news = []
        for index in range(self.blocks):
            context = None if contexts is None else contexts[index]
            x, new = ResidualBlock(dtype=self.dtype, name=f"block_{index}")(x, context)
            news.append(new)
        return x, tuple(news)


class TimeHalve(nn.Module):
    """Pairs of frames become one; the first frame of a video stays alone."""

    features: int
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Features, starts_video: bool) -> Float[Array, "B t H W c"]:
        """Returns `1 + n` frames for `1 + 2n` if they start a video, else `n` for `2n`."""
        dense = _dense(self.features, self.dtype, "first")
        settings = {"dtype": self.dtype, "kernel_init": fan_in_normal(), "name": "pairs"}
        pairs = nn.DenseGeneral(self.features, axis=(-3, -2, -1), **settings)
        # A frame of zeros beside the one that stays alone: what joins two results would copy them.
        paired = jnp.pad(x, ((0, 0), (int(starts_video), 0), (0, 0), (0, 0), (0, 0)))
        batch, frames, height, width, channels = paired.shape
        paired = paired.reshape(batch, frames // 2, 2, 1, height, width, channels)
        y = pairs(paired.transpose(0, 1, 4, 5, 2, 3, 6))
        return y.at[:, :1].set(dense(x[:, :1])) if starts_video else y


class TimeDouble(nn.Module):
    """Each frame becomes two; the first frame of a video stays alone."""

    features: int
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Features, starts_video: bool) -> Float[Array, "B t H W c"]:
        """Returns `1 + 2n` frames for `1 + n` if they start a video, else `2n` for `n`."""
        dense = _dense(self.features, self.dtype, "first")
        pairs = _dense(2 * self.features, self.dtype, "pairs")
        first, rest = (x[:, :1], x[:, 1:]) if starts_video else (None, x)
        batch, frames, height, width, _ = rest.shape
        y = pairs(rest).reshape(batch, frames, height, width, 2, self.features)
        y = y.transpose(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, self.features)
        return y if first is None else jnp.concatenate([dense(first), y], axis=1)


def _dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=fan_in_normal(), name=name)
