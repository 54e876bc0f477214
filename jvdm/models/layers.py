"""Layers that every network shares: norms, projections, rotary positions."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float
from jvdm.features import rms_normalize
from jvdm.models.low_rank import DOWN, LOW_RANK, UP, adapted_product
from jvdm.parallel import token_parts


class RMSNorm(nn.Module):
    """Root mean square norm with a learnt gain (Zhang and Sennrich, arXiv:1910.07467)."""

    epsilon: float = 1e-6
    apart: bool = False
    """Whether squares are summed by themselves (`rms_normalize`)."""

    @nn.compact
    def weights(self, width: int) -> Float[Array, " D"]:
        """Returns the gain of so many features."""
        return self.param("gain", nn.initializers.ones, (width,))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the normalised input in its own dtype."""
        gain = self.weights(x.shape[-1]).reshape((1,) * (x.ndim - 1) + (-1,))
        return (rms_normalize(x, self.epsilon, self.apart) * gain).astype(x.dtype)


class Linear(nn.Module):
    """Matrix product without bias; several outputs of one input are separate products.

    Each entry of `features` has its own kernel, so that optimizers see separate
    matrices. Joined to one product they would be faster forward and slower in
    training, where their gradients had to be joined too, a pass over memory each.
    """

    features: tuple[int, ...]
    dtype: str = "bfloat16"
    scale: float = 1.0  # standard deviation of the outputs at initialisation, for unit inputs
    bias: bool = False
    wide: bool = False
    """Whether the bias is added in float32, and the sum stays so, in the pass that reads it. Else
    the product adds it, for which it is rounded in a pass of its own."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> list[Float[Array, "*batch _"]]:
        """Returns one array per entry of `features`."""
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "normal")
        if self.scale == 0:
            init = nn.initializers.zeros
        width = x.shape[-1]
        names = ["kernel"] if len(self.features) == 1 else _names("kernel", len(self.features))
        # Two axes: with more, XLA transposes activations for the gradient of the kernel.
        # Not where tokens are split over devices: videos and tokens as one axis cannot be.
        rows = x.astype(self.dtype)
        rows = rows if token_parts() > 1 else rows.reshape(-1, width)
        outputs = []
        for name, size in zip(names, self.features, strict=True):
            kernel = jnp.asarray(self.param(name, init, (width, size)))
            outputs.append(self._product(rows, name, kernel).reshape(*x.shape[:-1], size))
        if self.bias:
            offset = self.param("bias", nn.initializers.zeros, (sum(self.features),))
            ends = [sum(self.features[: i + 1]) for i in range(len(self.features) - 1)]
            kind = "float32" if self.wide else self.dtype
            parts = jnp.split(offset.astype(kind), ends)
            outputs = [
                y.astype(kind) + part.reshape((1,) * (y.ndim - 1) + (-1,))
                for y, part in zip(outputs, parts, strict=True)
            ]
        return outputs

    def _product(self, rows: Float[Array, "*T I"], name: str, kernel: Array) -> Array:
        """Returns rows times a kernel, with what changes it (`jvdm.models.low_rank`)."""
        down = self.get_variable(LOW_RANK, name + DOWN)
        if down is None:
            return jnp.matmul(rows, kernel.astype(self.dtype))
        rows = rows.reshape(-1, rows.shape[-1])
        return adapted_product(rows, kernel, down, self.get_variable(LOW_RANK, name + UP))


def _names(stem: str, count: int) -> list[str]:
    return [f"{stem}_{index}" for index in range(count)]


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Gaussian error linear unit by its tanh approximation (Hendrycks, arXiv:1606.08415).

    The backward pass keeps the input alone and computes the slope from it, where
    the derivative that JAX takes keeps an array of intermediate values beside it.
    """
    return nn.gelu(x)


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    # The barrier hides that the forward pass computed parts of this, or XLA keeps those.
    return (jax.jvp(nn.gelu, (jax.lax.optimization_barrier(x),), (gradient,))[1],)


gelu.defvjp(lambda x: (nn.gelu(x), x), _gelu_backward)


class FeedForward(nn.Module):
    """Two projections with a GELU between them."""

    ratio: int = 4
    dtype: str = "bfloat16"
    hidden: int | None = None
    """Channels between them; None is `ratio` times the width."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch D"], keep: Float[Array, "*batch G"] | None = None
    ) -> Float[Array, "*batch D"]:
        """Returns features of the same width; `keep` multiplies groups of channels between."""
        size = self.ratio * x.shape[-1] if self.hidden is None else self.hidden
        (hidden,) = Linear((size,), self.dtype, name="up")(x)
        if keep is not None:
            groups = hidden.reshape(*keep.shape, -1) * keep[..., None].astype(hidden.dtype)
            hidden = groups.reshape(hidden.shape)
        (out,) = Linear((x.shape[-1],), self.dtype, scale=0.3, name="down")(gelu(hidden))
        return out


class TimeEmbedding(nn.Module):
    """Noise levels to feature vectors: sinusoids of `1000 t`, then two layers.

    The factor 1000 and base 10000 are those of Diffusers' timestep embedding.
    """

    width: int
    frequencies: int = 128
    dtype: str = "bfloat16"
    scale: float = 1.0
    """Of the vectors at initialisation."""

    @nn.compact
    def __call__(self, t: Float[Array, "B F"]) -> Float[Array, "B F D"]:
        """Returns one vector of `width` per frame, before its last activation."""
        exponent = -math.log(1e4) * jnp.arange(self.frequencies) / self.frequencies
        angles = 1000.0 * t[..., None] * jnp.exp(exponent)[None, None]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        (hidden,) = Linear((self.width,), self.dtype, bias=True, name="hidden")(waves)
        out = Linear((self.width,), self.dtype, self.scale, True, name="out")
        return out(nn.silu(hidden))[0]


Table = tuple[Float[Array, "L R"], Float[Array, "L R"]]
"""Cosines and sines of the angles by which a head of `2 R` features is turned.

Where heads turn by different angles, those of all heads stand side by side.
"""


class Rotary(NamedTuple):
    """By which angles the heads of every token are turned.

    A table of the tokens with the angles of all heads is as large as their heads are in float32.
    What depends on frames and what depends on places in them is small, if it is apart: XLA adds
    the two where heads are turned, and writes the sum nowhere.

    Attributes:
        frames: Of every frame, with zeros where places say it; of every token, if none do.
        places: Of every place of a frame, with zeros where frames say it.
    """

    frames: Table
    places: Table | None = None

    def tokens(self) -> Table:
        """Returns cosines and sines of every token, frame after frame."""
        if self.places is None:
            return self.frames
        cosine, sine = (
            (frame[:, None] + place[None]).reshape(-1, frame.shape[-1])
            for frame, place in zip(self.frames, self.places, strict=True)
        )
        return cosine, sine


def rotary_table(
    frames: Float[Array, " F"], height: int, width: int, axes: tuple[int, int, int], base: float
) -> Rotary:
    """Returns 3-D rotary positions for a flattened token grid.

    Args:
        frames: Position of each frame, in latent frames; need not start at 0.
        height: Rows of tokens.
        width: Columns of tokens.
        axes: Features of a head that turn with time, row and column; their sum
            is the head size, each is even.
        base: Ratio of the slowest to the fastest wavelength.

    Returns:
        A table of the tokens, `F * height * width` rows and half the head size columns
        (Su et al., arXiv:2104.09864, per axis).
    """

    def angles(positions: Array, size: int) -> Array:
        half = size // 2
        return positions[:, None] * (base ** (-jnp.arange(half) / half))[None]

    grid = (len(frames), height, width)
    places = (frames, jnp.arange(height), jnp.arange(width))
    time, row, column = (angles(place, size) for place, size in zip(places, axes, strict=True))
    parts = (time[:, None, None], row[None, :, None], column[None, None, :])
    table = [jnp.broadcast_to(part, (*grid, part.shape[-1])) for part in parts]
    flat = jnp.concatenate(table, -1).reshape(math.prod(grid), -1)
    return Rotary((jnp.cos(flat), jnp.sin(flat)))


def rotate(x: Float[Array, "B L N D"], rotary: Rotary) -> Float[Array, "B L N D"]:
    """Turns pairs (first half, second half of a head) by the angles of their tokens.

    XLA's kernels for GPUs read a pair once and write it, as the halves are joined at the end. By a
    flip of the halves it is read twice: a chunk of a stream of Wan took 2 % longer on an H200.
    """
    shape = (*x.shape[:3], 2, x.shape[-1] // 2)
    cosine, sine = (part.reshape(1, len(part), -1, 1, shape[-1]) for part in rotary.tokens())
    first, second = jnp.split(x.astype(jnp.float32).reshape(shape), 2, axis=3)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=3).reshape(x.shape)


def waves_of_places(rows: int, columns: int, waves: int) -> Float[Array, "P E"]:
    """Returns where in a frame each token is, `[rows x columns, 4 waves]`, whatever its size.

    A side of the frame is half a turn of the first wave, one turn of the second and so on.
    Rotary positions are relative: where all is noise, they tell no token on which side it is.
    """
    turns = jnp.pi * (jnp.arange(waves) + 1)
    sides = ((jnp.arange(size) + 0.5)[:, None] / size * turns[None] for size in (rows, columns))
    waves_of = [jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1) for angles in sides]
    down, across = jnp.repeat(waves_of[0], columns, 0), jnp.tile(waves_of[1], (rows, 1))
    return jnp.concatenate([down, across], -1)
