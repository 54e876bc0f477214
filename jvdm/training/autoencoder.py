"""Loss and fidelity of a video autoencoder, as pure functions of frames."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Frames, Key, PyTree
from jvdm.fidelity import decibels, object_pixels


@dataclasses.dataclass(frozen=True)
class AutoencoderWeights:
    """Weights of the terms of `autoencoder_loss`.

    Attributes:
        absolute: Mean absolute error.
        square: Mean square error.
        gradient: Mean absolute error of the differences between neighbouring pixels.
        flicker: Mean absolute error of the differences between successive frames.
        divergence: Kullback-Leibler divergence of the latents from the standard normal.
        object_pixels: Weight of a coloured pixel in these means; any other has weight 1.
    """

    absolute: float = 1.0
    square: float = 5.0
    gradient: float = 0.5
    flicker: float = 0.5
    divergence: float = 2e-4
    object_pixels: float = 3.0


def autoencoder_loss(
    vae: nn.Module,
    params: PyTree,
    frames: Frames,
    key: Key,
    weights: AutoencoderWeights = AutoencoderWeights(),  # noqa: B008 (frozen)
    decoder_only: bool = False,
    noise: float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Reconstruction error through sampled latents, plus the price of their information.

    Args:
        vae: The autoencoder.
        params: Its parameters.
        frames: RGB in 0..1, `T = 1 + 4n`.
        key: Draws the latents.
        weights: Weights of the terms.
        decoder_only: Gives the encoder no gradient: the latents stay what they are.
        noise: Standard deviations of the posterior by which latents are disturbed.

    Returns:
        The loss, and the unweighted terms with the PSNR in dB of the sampled reconstruction.
    """
    model = vae.bind({"params": params})
    posterior = model.encode(frames)
    if decoder_only:
        posterior = jax.lax.stop_gradient(posterior)
    error = model.decode(posterior.sample(key, noise)) - frames
    weight = 1.0 + (weights.object_pixels - 1.0) * _on_objects(frames)

    rows = _mean(jnp.abs(error[:, :, 1:] - error[:, :, :-1]), weight[:, :, 1:])
    columns = _mean(jnp.abs(error[:, :, :, 1:] - error[:, :, :, :-1]), weight[:, :, :, 1:])
    terms = {
        "absolute": _mean(jnp.abs(error), weight),
        "square": _mean(error**2, weight),
        "gradient": rows + columns,
        "flicker": _mean(jnp.abs(error[:, 1:] - error[:, :-1]), weight[:, 1:]),
        "divergence": posterior.divergence(),
    }
    loss = sum(getattr(weights, name) * value for name, value in terms.items())
    return jnp.asarray(loss), {**terms, "psnr": _decibels(jnp.mean(error**2))}


def autoencoder_psnr(vae: nn.Module, params: PyTree, frames: Frames) -> dict[str, Float[Array, ""]]:
    """Peak signal-to-noise ratio of reconstructions from the mean, pooled over all clips.

    Args:
        vae: The autoencoder.
        params: Its parameters.
        frames: RGB in 0..1, `T = 1 + 4n`.

    Returns:
        dB over `whole` clips, over `object` pixels (infinite if there is none), and over
        the `first_frame` of each clip.
    """
    error = (vae.bind({"params": params})(frames) - frames) ** 2
    return {
        "whole": _decibels(jnp.mean(error)),
        "object": _decibels(_mean(error, _on_objects(frames))),
        "first_frame": _decibels(jnp.mean(error[:, 0])),
    }


def _mean(values: Float[Array, "B T H W 3"], weight: Float[Array, "B T H W 1"]) -> Float[Array, ""]:
    """Weighted mean; 0 where there is nothing to average, as in a video of one frame."""
    total = jnp.sum(jnp.mean(values, axis=-1, keepdims=True) * weight)
    return total / jnp.maximum(jnp.sum(weight), 1.0)


def _on_objects(frames: Frames) -> Float[Array, "B T H W 1"]:
    return object_pixels(frames)[..., None].astype(jnp.float32)


_decibels = functools.partial(decibels, best=float("inf"))
