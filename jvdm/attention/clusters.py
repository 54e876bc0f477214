"""Clusters of tokens that are alike: k-means on the device, and blocks that hold one cluster."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int
from pallas_kernels import nearest

_taken = functools.partial(jnp.take_along_axis, mode="promise_in_bounds")


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
        return _taken(self.owner, self.slot // block, 1)

    def apply(self, x: Float[Array, "B S N D"]) -> Float[Array, "G slots D"]:
        """Returns the tokens of every head slot by slot, padding included."""
        x = jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], x.shape[3])
        return _taken(x, self.source[..., None], 1)

    def sums(self, x: Float[Array, "G slots D"]) -> Float[Array, "G T D"]:
        """Returns the sum of the tokens of each block of what `apply` returned, in float32.

        Some slots of each after others, or XLA for GPUs turns all tokens over before it adds them;
        and not while they are put in order, which is done once.
        """
        x = jax.lax.optimization_barrier(x).reshape(*self.owner.shape, -1, x.shape[2])
        parts, known, total = -(-x.shape[2] // 8), self.lengths[..., None], jnp.float32(0)
        for first in range(parts):
            some = x[:, :, first::parts].astype(jnp.float32)
            holds = jnp.arange(first, x.shape[2], parts)[None, None] < known
            total = total + jnp.sum(jnp.where(holds[..., None], some, 0.0), 2)
        return total

    def undo(self, x: Float[Array, "G slots D"]) -> Float[Array, "G S D"]:
        """Returns tokens in their first order: inverse of `apply`."""
        return _taken(x, self.slot[..., None], 1)


def means(
    x: Float[Array, "B S N D"], centroids: Float[Array, "G C D"], rounds: int, block: int
) -> tuple[Clusters, Packed]:
    """Divides tokens among centroids and moves these to the means, `rounds` times (Lloyd).

    Distances are of products in the type of the tokens. A token is read twice in a round: to find
    the nearest centroid, and to add it to the others of its block.

    Args:
        x: Tokens of every head; `G` is `B * N`.
        centroids: Where the search starts.
        rounds: Assignments, 1 or more.
        block: Slots of a block.

    Returns:
        The last assignment, with the means under it, and the tokens in blocks of one cluster.
    """
    (batch, tokens, heads, _), (groups, count, _) = x.shape, centroids.shape

    def again(_: Array | int, last: tuple[Clusters, Packed]) -> tuple[Clusters, Packed]:
        centroids = last[0].centroids
        labels = nearest(x, centroids.reshape(batch, heads, count, -1)).reshape(groups, tokens)
        sizes = jnp.zeros((groups, count), jnp.int32)
        sizes = sizes.at[jnp.arange(groups)[:, None], labels].add(1)
        blocks = packed(Clusters(centroids, labels, sizes), block)
        member, sums = jax.nn.one_hot(blocks.owner, count), blocks.sums(blocks.apply(x))
        total = jnp.einsum("gtc,gtd->gcd", member, sums, precision="highest")
        some = sizes[..., None]
        moved = jnp.where(some > 0, total / jnp.maximum(some, 1), centroids)
        return Clusters(moved, labels, sizes), blocks

    labels, sizes = (jnp.zeros((groups, n), jnp.int32) for n in (tokens, count))
    start = Clusters(centroids.astype(jnp.float32), labels, sizes)
    return jax.lax.fori_loop(0, rounds, again, (start, Packed.empty(groups, tokens, count, block)))


def some_of(tokens: int, count: int) -> Int[np.ndarray, " s"]:
    """Returns `count` of the tokens of a sequence, always the same; all if there are fewer."""
    if count >= tokens:
        return np.arange(tokens)
    return np.sort(np.random.default_rng(0).choice(tokens, count, replace=False))


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
    keys = sorted_rows(found.labels * tokens + jnp.arange(tokens)[None], count * tokens)
    order, label = keys % tokens, keys // tokens
    before = jnp.cumsum(found.sizes, -1) - found.sizes
    number, rows = _blocks(tokens, count, block), jnp.arange(groups)[:, None]
    place = jnp.arange(tokens)[None] + _taken(begins * block - before, label, -1)
    slot = jnp.zeros((groups, tokens), jnp.int32).at[rows, order].set(place, unique_indices=True)
    tile = jnp.arange(number)[None]
    owner = jnp.sum(tile[..., None] >= ends[:, None], -1, dtype=jnp.int32)
    mine = jnp.minimum(owner, count - 1)
    size, begin, first = (_taken(x, mine, -1) for x in (found.sizes, begins, before))
    done = (tile - begin) * block  # tokens of the cluster in blocks before
    lengths = jnp.where(owner < count, jnp.clip(size - done, 0, block), 0)
    source = jnp.minimum((first + done)[..., None] + jnp.arange(block)[None, None], tokens - 1)
    source = _taken(order, source.reshape(groups, -1), -1)
    return Packed(source, slot, owner, lengths)


def sorted_rows(keys: Int[Array, "G S"], most: int) -> Int[Array, "G S"]:
    """Sorts rows of different numbers below `most`, as one row if that fits: faster on a GPU."""
    groups = len(keys)
    if groups * most > 2**32:
        return jax.lax.sort(keys, is_stable=False)
    first = most * jnp.arange(groups, dtype=jnp.uint32)[:, None]
    row = jax.lax.sort((first + keys.astype(jnp.uint32)).reshape(-1), is_stable=False)
    return (row.reshape(groups, -1) - first).astype(jnp.int32)


def _blocks(tokens: int, clusters: int, block: int) -> int:
    """Returns the most blocks that tokens can need, each of one cluster."""
    return (tokens + clusters * (block - 1)) // block
