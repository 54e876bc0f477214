"""A tree as named arrays: names, shapes, checksums, and what differs between two."""

from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import PyTree


def by_name(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of `tree` by path, as in `params/head/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(named: dict[str, Any]) -> dict[str, Any]:
    """Returns dictionaries of dictionaries, one level per `/` in the names."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def plain_arrays(tree: PyTree) -> dict[str, jax.Array]:
    """Returns the arrays of `tree` by name, random keys as their key data."""
    return {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in by_name(tree).items()
    }


def plain_shapes(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Does the same as `plain_arrays` for a tree of shapes; shardings stay."""
    return {name: _without_key(leaf) for name, leaf in by_name(tree).items()}


def shapes(tree: PyTree) -> dict[str, list]:
    """Returns `[shape, dtype]` by name, as JSON data."""
    plain = {name: _without_key(leaf) for name, leaf in by_name(tree).items()}
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in plain.items()}


def key_kinds(tree: PyTree) -> dict[str, str]:
    """Returns the names of the random keys in `tree` and how each is implemented."""
    leaves = by_name(tree).items()
    return {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves if _is_key(leaf)}


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """Returns a 32-bit sum over the bits of every array, weighted by position.

    The storage below keeps no checksum of the values themselves.
    """
    return {name: int(value) for name, value in jax.device_get(_bit_sums(arrays)).items()}


def check_checksums(stored: dict[str, int], arrays: dict[str, Any]) -> None:
    """Raises `ValueError` if an array is not the one whose checksum was stored."""
    found = checksums(arrays)
    wrong = [name for name in found if found[name] != stored[name]]
    if wrong:
        raise ValueError(f"the values of {', '.join(wrong[:3])} are not those that were saved")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the plain values inside nested JSON data by dotted path."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns a line for every name whose value differs between a checkpoint and now."""
    missing = "absent"
    return [
        f"{name}: {old.get(name, missing)} in the checkpoint, {new.get(name, missing)} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
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
