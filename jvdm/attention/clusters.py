"""Clusters of tokens that are alike: k-means on the device, and blocks that hold one cluster."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int

CHUNK = 8192
"""Tokens whose distances to all centroids are kept at once."""


class Clusters(NamedTuple):
    """What k-means says of `G` sequences.

    Attributes:
        centroids: f32[G, C, D], means of the members; an empty cluster keeps its last one.
        labels: i32[G, S], cluster of every token.
        sizes: i32[G, C], members.
    """

    centroids: Float[Array, "G C D"]
    labels: Int[Array, "G S"]
    sizes: Int[Array, "G C"]


class Packed(NamedTuple):
    """Tokens of a sequence in blocks, each of one cluster, short at the end of the cluster.

    Attributes:
        source: i32[G, T * B], token that lies in a slot; any where none does.
        slot: i32[G, S], slot that a token lies in.
        owner: i32[G, T], cluster of a block; the number of clusters where it is not used.
        lengths: i32[G, T], tokens of a block.
    """

    source: Int[Array, "G slots"]
    slot: Int[Array, "G S"]
    owner: Int[Array, "G T"]
    lengths: Int[Array, "G T"]

    @classmethod
    def empty(cls, groups: int, tokens: int, clusters: int, block: int) -> "Packed":
        """Returns what `packed` returns for such sizes, all zeros."""
        number = _blocks(tokens, clusters, block)
        sizes = number * block, tokens, number, number
        return cls(*(jnp.zeros((groups, size), jnp.int32) for size in sizes))

    @property
    def labels(self) -> Int[Array, "G S"]:
        """Cluster of every token."""
        block = self.source.shape[1] // self.owner.shape[1]
        return jnp.take_along_axis(self.owner, self.slot // block, 1)

    def apply(self, x: Float[Array, "G S D"]) -> Float[Array, "G slots D"]:
        """Returns tokens slot by slot, padding included."""
        return jnp.take_along_axis(x, self.source[..., None], 1)

    def undo(self, x: Float[Array, "G slots D"]) -> Float[Array, "G S D"]:
        """Returns tokens in their first order: inverse of `apply`."""
        return jnp.take_along_axis(x, self.slot[..., None], 1)


def means(x: Float[Array, "G S D"], centroids: Float[Array, "G C D"], rounds: int) -> Clusters:
    """Divides tokens among centroids and moves these to the means, `rounds` times (Lloyd).

    A round costs two products of all tokens and centroids; distances are in the type of the
    tokens, sums in float32.

    Args:
        x: Tokens.
        centroids: Where the search starts.
        rounds: Assignments, 1 or more.

    Returns:
        The last assignment, and the means under it.
    """
    groups, tokens, width = x.shape
    size = min(CHUNK, tokens)
    short = -tokens % size
    pieces = jnp.pad(x, ((0, 0), (0, short), (0, 0))).reshape(groups, -1, size, width)
    known = (jnp.arange(tokens + short) < tokens).reshape(-1, size)
    given = jnp.moveaxis(pieces, 1, 0), known

    def again(_: Array | int, found: Clusters) -> Clusters:
        divide = functools.partial(_divided, found.centroids)
        total, labels = jax.lax.scan(divide, jnp.zeros(found.centroids.shape), given)
        labels = jnp.moveaxis(labels, 0, 1).reshape(groups, -1)[:, :tokens]
        sizes = jnp.zeros_like(found.sizes).at[jnp.arange(groups)[:, None], labels].add(1)
        some = sizes[..., None]
        moved = jnp.where(some > 0, total / jnp.maximum(some, 1), found.centroids)
        return Clusters(moved, labels, sizes)

    labels, sizes = (jnp.zeros((groups, n), jnp.int32) for n in (tokens, centroids.shape[1]))
    first = Clusters(centroids.astype(jnp.float32), labels, sizes)
    return jax.lax.fori_loop(0, rounds, again, first)


def _divided(
    centroids: Float[Array, "G C D"],
    sums: Float[Array, "G C D"],
    given: tuple[Float[Array, "G s D"], Bool[Array, " s"]],
) -> tuple[Float[Array, "G C D"], Int[Array, "G s"]]:
    """Adds the tokens of a piece to the sums of their clusters; returns their labels too."""
    x, known = given
    at, kind = centroids.astype(x.dtype), jnp.float32
    near = jnp.einsum("gsd,gcd->gsc", x, at, preferred_element_type=kind)
    away = jnp.sum(jnp.square(centroids), -1)[:, None] - 2 * near
    labels = jnp.argmin(away, -1).astype(jnp.int32)
    every = jnp.arange(centroids.shape[1])[None, None]
    member = (labels[..., None] == every) & known[None, :, None]
    total = jnp.einsum("gsc,gsd->gcd", member.astype(x.dtype), x, preferred_element_type=kind)
    return sums + total, labels


def packed(found: Clusters, block: int) -> Packed:
    """Puts the tokens of clusters into blocks, cluster after cluster.

    A block holds tokens of one cluster; about half a block per cluster stays empty.

    Args:
        found: The clusters.
        block: Slots of a block.
    """
    (groups, tokens), count = found.labels.shape, found.sizes.shape[1]
    used = -(-found.sizes // block)
    ends = jnp.cumsum(used, -1)
    begins = ends - used
    keys = jnp.sort(found.labels * tokens + jnp.arange(tokens)[None], -1)
    order, label = keys % tokens, keys // tokens
    before = jnp.cumsum(found.sizes, -1) - found.sizes
    shift = jnp.take_along_axis(begins * block - before, label, -1)
    place = jnp.arange(tokens)[None] + shift  # slot of the tokens in the order of their clusters
    number, rows = _blocks(tokens, count, block), jnp.arange(groups)[:, None]
    source = jnp.zeros((groups, number * block), jnp.int32).at[rows, place].set(order)
    slot = jnp.zeros((groups, tokens), jnp.int32).at[rows, order].set(place)
    tile = jnp.arange(number)[None]
    owner = jnp.sum(tile[..., None] >= ends[:, None], -1, dtype=jnp.int32)
    mine = jnp.minimum(owner, count - 1)
    size, begin = (jnp.take_along_axis(x, mine, -1) for x in (found.sizes, begins))
    lengths = jnp.clip(size - (tile - begin) * block, 0, block)
    return Packed(source, slot, owner, jnp.where(owner < count, lengths, 0))


def _blocks(tokens: int, clusters: int, block: int) -> int:
    """Returns the most blocks that tokens can need, each of one cluster."""
    return (tokens + clusters * (block - 1)) // block
