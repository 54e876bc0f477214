"""The centroid nearest to each token: half of a round of k-means."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.kernel import KernelUnavailable
from pallas_kernels.attention.planned import refusal_of_one_gpu

CHUNK = 8192  # tokens whose distances to all centroids are kept at once, without the kernel


def nearest(
    x: Float[Array, "B S N D"],
    centroids: Float[Array, "B N C D"],
    implementation: Literal["xla", "mosaic_gpu"] | None = None,
) -> Int[Array, "B N S"]:
    """Returns the number of the centroid nearest to each token, the first of equally near ones.

    Args:
        x: Tokens of every head.
        centroids: What they are compared with, in the type of the tokens; sums are in float32.
        implementation: `mosaic_gpu` is for H100 and H200, and keeps no distances in memory; `xla`
            runs anywhere. None chooses the first where it can serve the call.

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.

    Example:
        >>> x = jnp.array([0.0, 0.4, 0.9]).reshape(1, 3, 1, 1)
        >>> nearest(x, jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)).tolist()
        [[[0, 0, 1]]]
    """
    reason = _refusal(x)
    if implementation == "mosaic_gpu" and reason:
        raise KernelUnavailable(f"mosaic_gpu: {reason}; use implementation='xla'")
    centroids = centroids.astype(x.dtype)
    half = jnp.sum(jnp.square(centroids.astype(jnp.float32)), -1) / 2
    if implementation == "xla" or reason:
        return _by_chunks(x, centroids, half)
    return _by_kernel(x, centroids, half)


def _refusal(x: Array) -> str:
    """Returns why the kernel cannot serve such tokens here; empty if it can."""
    if reason := refusal_of_one_gpu():
        return reason
    from pallas_kernels.attention.mosaic_gpu import MosaicGPU

    return MosaicGPU().refusal_of_inputs(x)


def _by_kernel(
    x: Float[Array, "B S N D"], centroids: Float[Array, "B N C D"], half: Float[Array, "B N C"]
) -> Int[Array, "B N S"]:
    """Pads tokens, centroids and features as the kernel wants them; padding is near to nothing."""
    from pallas_kernels.centroids_hopper import TILE_SIZE, labels

    tokens, more = x.shape[1], -centroids.shape[2] % TILE_SIZE
    wide = (64 if x.shape[3] <= 64 else 128) - x.shape[3]
    x = jnp.pad(x, ((0, 0), (0, -tokens % 8), (0, 0), (0, wide)))
    centroids = jnp.pad(centroids, ((0, 0), (0, 0), (0, more), (0, wide)))
    half = jnp.pad(half, ((0, 0), (0, 0), (0, more)), constant_values=jnp.inf)
    return labels(x, centroids, half, jax.devices()[0].core_count)[:, :, :tokens]


def _by_chunks(
    x: Float[Array, "B S N D"], centroids: Float[Array, "B N C D"], half: Float[Array, "B N C"]
) -> Int[Array, "B N S"]:
    """Compares so many tokens at once that their distances fit into memory."""
    tokens = x.shape[1]
    size = min(CHUNK, tokens)
    x = jnp.pad(x, ((0, 0), (0, -tokens % size), (0, 0), (0, 0)))
    pieces = jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def compare(piece: Array) -> Array:
        score = jnp.einsum("bsnd,bncd->bnsc", piece, centroids, preferred_element_type=jnp.float32)
        return jnp.argmax(score - half[:, :, None], -1).astype(jnp.int32)

    found = jnp.moveaxis(lax.map(compare, pieces), 0, 2)
    return found.reshape(*found.shape[:2], -1)[..., :tokens]
