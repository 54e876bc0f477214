"""Axis letters and array aliases: the vocabulary of every annotation in jvdm.

Letters: `B` batch, `F` latent frames, `T` pixel frames, `H W` height and width
(of latents, or of pixels next to `T`), `C` channels, `N` heads, `L` tokens, `D`
features, `Q K` query and key blocks, `S` solver steps, `R` rows of a timestep
matrix. Names that differ in a function stand for axes that may differ.
"""

from typing import Any, TypeVar

import jax
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt8, UInt16

Latents = Float[Array, "B F H W C"]
"""Latent video; `H W` count latent cells."""

NoiseLevels = Float[Array, "B F"]
"""One noise level per latent frame: 1 is noise, 0 is clean."""

Frames = Float[Array, "B T H W 3"]
"""Pixel video on the device, RGB in 0..1."""

FrameMask = Bool[Array, "B F"]
"""One flag per latent frame."""

Tokens = Float[Array, "B L D"]
"""A sequence of feature vectors."""

TokenIds = Int[Array, "B L"]
"""Word indices; 0 is padding."""

Key = PRNGKeyArray
"""A typed JAX random key (`jax.random.key`)."""

PyTree = Any
"""Any tree of arrays."""

Part = TypeVar("Part")


def no_type_check(cls: type) -> Any:
    """Marks a rule that is a pytree: JAX rebuilds it with anything as leaves, so no test checks it.

    jaxtyping's import hook goes by the name of this decorator. Unlike that of `typing` it leaves
    the annotations to the command line.
    """
    return cls


def instances(tree: PyTree, kind: type[Part]) -> list[Part]:
    """Returns the values of a class that stand in a tree, in its order."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda item: isinstance(item, kind))
    return [item for item in leaves if isinstance(item, kind)]


__all__ = [
    "Array",
    "Bool",
    "Float",
    "FrameMask",
    "Frames",
    "Int",
    "Key",
    "Latents",
    "NoiseLevels",
    "PyTree",
    "TokenIds",
    "Tokens",
    "UInt8",
    "UInt16",
    "instances",
    "no_type_check",
]
