"""The smallest autoencoder, in float32, and how far rounding may move its results."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.vae.video_vae import VideoVAE

NANO: Any = VideoVAE(  # Any: pyright takes modules for unhashable and `apply` for a pair
    latent_channels=4,
    widths=(16, 32),
    encoder_blocks=(1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1),
    dtype=jnp.float32,
)

# A sum of K products is off by about sqrt(K) half units in the last place, and such errors
# add over the layers. The widest sum is a 3 x 3 convolution of 32 channels; either half of
# the network has 14 layers in a row.
_LAYERS, _LONGEST_SUM = 14, 9 * 32
ROUNDING = _LAYERS * np.sqrt(_LONGEST_SUM) * np.finfo(np.float32).eps / 2


QUICK = {"xla_backend_optimization_level": 0}
"""Options of `jax.jit`: less than half the time to compile, for programs that run once."""


@functools.cache
def params(vae: Any = NANO):
    """Random parameters; drawn on the host, because `init` takes seconds to compile."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype)
        return (path[-1].key == "scale") + rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype)

    shapes = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))["params"]
    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


@functools.cache
def jitted(method: str, vae: Any = NANO):
    """Returns `vae.<method>(*arguments)` with `params(vae)`, compiled."""
    return functools.partial(jax.jit(bare(method, vae), compiler_options=QUICK), params(vae))


def bare(method: str, vae: Any = NANO):
    """Returns `vae.<method>` as a function of parameters and arguments, for use in a jit."""
    return lambda params, *arguments: vae.apply({"params": params}, *arguments, method=method)


def video(num_frames: int, height: int, width: int, batch: int = 1) -> jax.Array:
    shape = (batch, num_frames, height, width, 3)
    return jnp.asarray(np.random.default_rng(1).random(shape, np.float32))


def latents(latent_frames: int, height: int, width: int, batch: int = 1) -> jax.Array:
    shape = (batch, latent_frames, height, width, NANO.latent_channels)
    return jnp.asarray(np.random.default_rng(2).standard_normal(shape, np.float32))


def assert_equal_but_rounding(actual, expected) -> None:
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDING * scale)
