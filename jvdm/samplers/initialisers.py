"""Starting noise whose frames are related: ways to draw `x` at the first row of a run.

All of them draw addressed noise (`noise.py`), so a window of frames that is drawn by itself
equals the same frames of the whole. Windows that overlap share their noise for the same
reason: what DiTCtrl (arXiv:2412.18597) copies from tile to tile is equal here anyway.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key
from jvdm.errors import ConfigError
from jvdm.keys import addressed_normal, named
from jvdm.samplers.noise import initial_noise

_SHARED = "noise shared by frames"


@runtime_checkable
class NoiseInitialiser(Protocol):
    """Draws starting noise; `initial_noise` (independent frames) is the simplest one."""

    def __call__(
        self,
        key: Key,
        samples: Array,
        latent_frames: int,
        shape: Sequence[int],
        first_frame: int = 0,
    ) -> Array:
        """Returns float32 noise `[B, F, *shape]` of the frames from `first_frame` on."""
        ...


@dataclass(frozen=True)
class SharedNoise:
    """A share of every frame's noise is the same in all frames: `a s + (1 - a) e_f`.

    Attributes:
        ratio: The share `a`, in 0..1.
        preserve_variance: Divide by `sqrt(a^2 + (1 - a)^2)`, so that the variance is 1;
            the published method does not, and starts at 0.68 for its `a = 0.2`.

    Reference: LAMP, arXiv:2310.10769, section 3.3.
    """

    ratio: float
    preserve_variance: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ConfigError(
                f"ratio {self.ratio}", "a share of noise lies in 0..1", "choose one in it"
            )

    def __call__(
        self,
        key: Key,
        samples: Int[Array, " B"],
        latent_frames: int,
        shape: Sequence[int],
        first_frame: int = 0,
    ) -> Float[Array, "B F ..."]:
        """Returns noise whose frames have correlation `a^2 / (a^2 + (1 - a)^2)`."""
        shared = initial_noise(named(key, _SHARED), samples, 1, shape)
        own = initial_noise(key, samples, latent_frames, shape, first_frame)
        scale = math.hypot(self.ratio, 1 - self.ratio) if self.preserve_variance else 1.0
        return (self.ratio * shared + (1 - self.ratio) * own) / scale


def mixed_noise(strength: float) -> SharedNoise:
    """Returns noise with correlation `a^2 / (1 + a^2)` between any two frames.

    Args:
        strength: `a`, 0 or more; 0 is independent noise.

    Reference: PYoCo, arXiv:2305.10474, mixed noise model.
    """
    return SharedNoise(strength / (1 + strength))


@dataclass(frozen=True)
class ProgressiveNoise:
    """Each frame continues the one before: `n_f = (a n_{f-1} + e_f) / sqrt(1 + a^2)`.

    Attributes:
        strength: `a`; frames at distance `d` have correlation `(a / sqrt(1 + a^2))^d`.

    Reference: PYoCo, arXiv:2305.10474, progressive noise model.
    """

    strength: float

    def __call__(
        self,
        key: Key,
        samples: Int[Array, " B"],
        latent_frames: int,
        shape: Sequence[int],
        first_frame: int = 0,
    ) -> Float[Array, "B F ..."]:
        """Returns the noise; the cost grows with the distance from frame 0."""
        frames = first_frame + latent_frames
        own = initial_noise(key, samples, frames, shape)
        decay = self.strength / math.hypot(1, self.strength)
        distance = jnp.arange(first_frame, frames)[:, None] - jnp.arange(frames)[None, :]
        weights = jnp.where(distance >= 0, decay ** jnp.maximum(distance, 0), 0.0)
        innovation = jnp.full(frames, 1 / math.hypot(1, self.strength)).at[0].set(1.0)
        weights = weights * innovation[None, :]
        return jnp.einsum("fg,bg...->bf...", weights, own, precision="highest")


@dataclass(frozen=True)
class WindowShuffle:
    """Noise of the first window again and again, shuffled in groups of neighbouring frames.

    Every window of `window` frames that starts at a multiple of `stride` holds the same
    noise, so a model sees the distribution that it was trained on, and far frames are
    related. With window 4 and stride 2, eight frames may use 0 1 2 3, 1 0, 3 2. We shuffle
    each sample by itself; the published program shuffles all alike.

    Attributes:
        window: Frames that the model was trained on.
        stride: Frames per shuffled group; divides `window`.

    Reference: FreeNoise, arXiv:2310.15169, section 3.2.
    """

    window: int
    stride: int

    def __post_init__(self) -> None:
        if self.stride < 1 or self.window < self.stride or self.window % self.stride:
            raise ConfigError(
                f"window {self.window}, stride {self.stride}",
                "groups of `stride` frames must fill the window",
                "choose a stride that divides the window",
            )

    def indices(
        self, key: Key, samples: Int[Array, " B"], frames: Int[Array, " F"]
    ) -> Int[Array, "B F"]:
        """Returns which frame of the first window each frame takes its noise from."""
        key = named(key, "window shuffle")

        def index(sample: Array, frame: Array) -> Array:
            group, position = frame // self.stride, frame % self.stride
            address = jax.random.fold_in(jax.random.fold_in(key, sample), group)
            shuffled = jax.random.permutation(address, self.stride)[position]
            first = (group * self.stride) % self.window
            return first + jnp.where(frame < self.window, position, shuffled)

        over_frames = jax.vmap(index, in_axes=(None, 0))
        return jax.vmap(over_frames, in_axes=(0, None))(samples, frames)

    def __call__(
        self,
        key: Key,
        samples: Int[Array, " B"],
        latent_frames: int,
        shape: Sequence[int],
        first_frame: int = 0,
    ) -> Float[Array, "B F ..."]:
        """Returns the noise; each frame by itself is standard normal."""
        indices = self.indices(key, samples, first_frame + jnp.arange(latent_frames))

        def one_sample(sample: Array, frames: Array) -> Array:
            return addressed_normal(key, sample[None], frames, shape)[0]

        return jax.vmap(one_sample)(samples, indices)


@dataclass(frozen=True)
class OffsetNoise:
    """Adds noise that is the same at all places of a video, one number per channel.

    A model that was trained with it can make a whole video bright or dark.

    Attributes:
        strength: Deviation of the offset; the sum is divided by `sqrt(1 + strength^2)`.

    Reference: Guttenberg, Diffusion with Offset Noise (2023), which does not divide; UniVG,
    arXiv:2401.09084, trains with 0.1.
    """

    strength: float

    def __call__(
        self,
        key: Key,
        samples: Int[Array, " B"],
        latent_frames: int,
        shape: Sequence[int],
        first_frame: int = 0,
    ) -> Float[Array, "B F ..."]:
        """Returns noise of unit variance."""
        channels = (1,) * (len(shape) - 1) + tuple(shape[-1:])
        offset = initial_noise(named(key, "offset of noise"), samples, 1, channels)
        own = initial_noise(key, samples, latent_frames, shape, first_frame)
        return (own + self.strength * offset) / math.hypot(1, self.strength)


@dataclass(frozen=True)
class PoolPermute:
    """Frames of a pool of noise again and again, in an order in which near ones never meet.

    The pool has `block + overlap` frames. A block leaves out the last `overlap` frames before it
    and takes the others in a random order, so no frame comes back within `overlap` frames.

    Attributes:
        block: Latent frames per block.
        overlap: Frames before a block that it does not repeat.

    Reference: DualParal, arXiv:2505.21070, coordinated noise.
    """

    block: int
    overlap: int

    def __post_init__(self) -> None:
        if self.block < 1 or self.overlap < 0:
            raise ConfigError(
                f"a pool for blocks of {self.block} with overlap {self.overlap}",
                "a block has a frame",
                "use block >= 1 and overlap >= 0",
            )

    def indices(self, key: Key, samples: Int[Array, " B"], latent_frames: int) -> Int[Array, "B F"]:
        """Returns which frame of the pool each of the first frames takes its noise from."""
        key, pool = named(key, "pool of noise"), self.block + self.overlap
        blocks = max(0, -(-(latent_frames - pool) // self.block))

        def one(sample: Array) -> Array:
            own = jax.random.fold_in(key, sample)

            def extend(last: Array, number: Array) -> tuple[Array, Array]:
                order = jax.random.permutation(jax.random.fold_in(own, number), self.block)
                taken = last[: self.block][order]
                return jnp.concatenate([last[self.block :], taken]), taken

            first = jnp.arange(pool)
            _, rest = jax.lax.scan(extend, first, jnp.arange(blocks))
            return jnp.concatenate([first, rest.reshape(-1)])[:latent_frames]

        return jax.vmap(one)(samples)

    def __call__(
        self,
        key: Key,
        samples: Int[Array, " B"],
        latent_frames: int,
        shape: Sequence[int],
        first_frame: int = 0,
    ) -> Float[Array, "B F ..."]:
        """Returns the noise; each frame by itself is standard normal."""
        indices = self.indices(key, samples, first_frame + latent_frames)[:, first_frame:]

        def one_sample(sample: Array, frames: Array) -> Array:
            return addressed_normal(key, sample[None], frames, shape)[0]

        return jax.vmap(one_sample)(samples, indices)


def mix_frequencies(
    low: Float[Array, "B F H W C"], high: Float[Array, "B F H W C"], cutoff: float = 0.25
) -> Float[Array, "B F H W C"]:
    """Returns the slow part of one noise and the fast part of another.

    For a second run from the layout of the first: `low` is the first result, noised again with the
    noise that it came from, and `high` is fresh.

    Args:
        low: Noise whose low frequencies are kept.
        high: Noise that gives the others.
        cutoff: Deviation of the Gaussian filter in shares of the highest frequency of each axis.

    Reference: FreeInit, arXiv:2312.07537, section 4, with a Gaussian filter.
    """
    axes = (1, 2, 3)
    squares = jnp.zeros((1, 1, 1, 1, 1))
    for axis in axes:
        frequency = 2.0 * jnp.fft.fftfreq(low.shape[axis]) / cutoff
        squares = squares + (frequency**2).reshape([-1 if i == axis else 1 for i in range(5)])
    kept = jnp.exp(-0.5 * squares)
    spectrum = kept * jnp.fft.fftn(low, axes=axes) + (1.0 - kept) * jnp.fft.fftn(high, axes=axes)
    return jnp.fft.ifftn(spectrum, axes=axes).real


class NoiseReport(NamedTuple):
    """What the frames of noise have to do with each other, over samples and entries.

    Attributes:
        variance: f32[F], per frame; 1 is what a model was trained on.
        correlation: f32[F, F], between frames.
    """

    variance: Array
    correlation: Array


def report_noise(noise: Float[Array, "B F ..."]) -> NoiseReport:
    """Measures variances of frames and correlations between them."""
    latent_frames = noise.shape[1]
    flat = jnp.moveaxis(noise, 1, 0).reshape(latent_frames, -1)
    return NoiseReport(flat.var(axis=1), jnp.corrcoef(flat))
