"""A tree as named arrays: names, shapes and checksums."""

from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import PyTree


def by_name(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of `tree` by path, as in `params/head/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def plain(tree: PyTree) -> dict[str, Any]:
    """Returns the arrays of `tree`, or their shapes, by name; random keys as their key data."""
    return {name: _plain(leaf) for name, leaf in by_name(tree).items()}


def shapes(tree: PyTree) -> dict[str, list]:
    """Returns `[shape, dtype]` by name, as JSON data."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in plain(tree).items()}


def random_keys(tree: PyTree) -> dict[str, Any]:
    """Returns the random keys in `tree` by name."""
    return {name: leaf for name, leaf in by_name(tree).items() if _is_key(leaf)}


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """Returns a 32-bit sum over the bits of every array, weighted by position.

    The storage below keeps no checksum of the values themselves.
    """
    return {name: int(value) for name, value in jax.device_get(_bit_sums(arrays)).items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


@jax.jit
def _bit_sums(arrays: dict[str, Any]) -> dict[str, jax.Array]:
    def bit_sum(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = jax.lax.bitcast_convert_type(leaf, f"uint{leaf.dtype.itemsize * 8}")
        bits = leaf.reshape(-1).astype(jnp.uint32)
        # Odd multiples of Knuth's constant: a flipped bit or two swapped values change the sum.
        weights = (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1) * jnp.uint32(2654435761)
        return jnp.sum(bits * weights, dtype=jnp.uint32)

    return jax.tree.map(bit_sum, arrays)
