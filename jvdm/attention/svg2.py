"""Sparse VideoGen2: tokens that are alike are brought together, clusters attend to clusters."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float
from jvdm.attention.blocks import blocks_of
from jvdm.attention.clusters import Clusters, Packed, means, some_of
from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.attention.sparse import Sparse
from jvdm.attention.tally import Tally
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask

MOST = (100, 500)  # clusters of queries and of keys: the paper's
SEARCHES = 5  # of a run, about, unless a policy says how many rows each serves
KEYS = 64  # tokens of a block of keys, at most: a cluster leaves half a block empty
PARTS, DIVISIONS = 32, 3  # in which the interval of the top-p that fits the density is divided


class Listed(NamedTuple):
    """What attends to what, of `G` heads.

    Attributes:
        rows: Queries in blocks of one cluster.
        columns: Keys likewise.
        marked: bool[G, C, c], clusters of keys that clusters of queries attend to.
        density: f32[], share of all pairs of tokens.
    """

    rows: Packed
    columns: Packed
    marked: Bool[Array, "G C c"]
    density: Float[Array, ""]


class Centroids(NamedTuple):
    """What a layer remembers.

    Attributes:
        tally: What was done.
        queries: f32[B, N, C, D], centroids of the last search.
        keys: f32[B, N, C, D], the same of keys.
        listed: What it found, head by head, where it serves several rows; else None.
    """

    tally: Tally
    queries: Float[Array, "B N C D"]
    keys: Float[Array, "B N c D"]
    listed: Listed | None = None


@dataclasses.dataclass(frozen=True)
class SVG2(Sparse):
    """Clusters of queries attend to the clusters of keys with most attention (arXiv:2505.18875).

    Queries and keys of every head are divided by k-means, after norm and rotary positions. The
    softmax of products of centroids, in which a cluster of keys counts as often as it has tokens,
    estimates the attention of clusters; a cluster of queries lists the best until their share is
    `mass`. The first sparse row searches from random tokens, later ones go on from the centroids of
    the row before, layer by layer, head by head, and for each branch of guidance.

    Clusters are packed into blocks of one cluster each, so that the kernels see lists of short
    blocks. A cluster leaves half a block of keys empty on average: that costs time, not counted in
    the density, which is of pairs of tokens.

    What is ours: `density` is what a head may spend; where `mass` asks for more, the head gets the
    largest share that fits, the same for all of its clusters, which list their best at least. The
    authors' scripts list a tenth of the clusters of keys at least. Over devices that split heads,
    one of them computes all.
    """

    dense_rows: float = 0.2
    dense_layers: int = 1
    mass: float = 1.0
    """Share of the estimated attention at which a list is long enough, in (0, 1]; at 1 the density
    decides alone. The authors use .9."""
    queries: int = 0
    """Clusters of queries; 0 is 100, or as many as there are blocks if those are fewer."""
    keys: int = 0
    """Clusters of keys; 0 is 500, or as many as there are blocks if those are fewer."""
    first: int = 50
    """Rounds of k-means in the first sparse row."""
    later: int = 1
    """Rounds in every later search; the authors have 2."""
    every: int = 0
    """Rows that a search serves, which then attend among the same tokens; the authors have 1. 0 is
    a fifth of the rows of a run, or 1 where their densities differ."""
    warm: bool = True
    """Whether a call starts from the centroids of the last one, instead of from tokens."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        super().__post_init__()
        if not 0 < self.mass <= 1:
            raise ConfigError(f"mass is {self.mass:g}", "it is a share, above 0 and at most 1")
        for name in ("queries", "keys"):
            if getattr(self, name) < 0:
                what = f"{getattr(self, name)} clusters of {name}"
                raise ConfigError(what, "it is a number", "use 1 or more, or 0, which chooses")
        if self.every < 0:
            why, fix = "a search serves the row that it is of", "use 1, 4, or 0, which chooses"
            raise ConfigError(f"every is {self.every}", why, fix)
        if self.every > 1 and not self._alike:
            what = f"a search for {self.every} rows, whose densities differ"
            fix = "use every=1, or dense_above=1 and shares of layers and heads"
            raise ConfigError(what, "they attend among the same tokens", fix)
        for name in ("first", "later"):
            if getattr(self, name) < 1:
                what = f"{getattr(self, name)} rounds of k-means"
                raise ConfigError(what, "tokens are divided once at least", "use 1 or more")

    @property
    def period(self) -> int:
        """Rows from one search to the next."""
        return self.every or 1

    @property
    def _alike(self) -> bool:
        """Whether all rows have one density."""
        return self.dense_above == 1 and len(self.densities) == 1

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """Dense rows, one that searches from tokens, and those that go on from it."""
        parts: list[tuple[str, int]] = []
        every = num_rows // SEARCHES if self.every == 0 and self._alike else 1
        for name, count in super().phases(num_rows):
            if name == "sparse" and ("first", 1) not in parts:
                parts, count = [*parts, ("first", 1)], count - 1
            parts.append((f"every {every}" if name == "sparse" and every > 1 else name, count))
        return tuple(part for part in parts if part[1])

    def in_phase(self, name: str) -> Policy:
        """Returns what the rows of a phase do."""
        if name.startswith("every "):
            return dataclasses.replace(self, every=int(name.removeprefix("every ")))
        if name == "dense":
            return self._dense()
        return dataclasses.replace(self, warm=False) if name == "first" else self

    def order(self, grid: TokenGrid) -> None:
        """Asks for no order: every head has its own."""
        return None

    def init(self, grid: TokenGrid) -> Centroids:
        """Checks the grid; nothing is found yet.

        Raises:
            ConfigError: If there are more clusters than tokens, or blocks that cannot be.
        """
        super().init(grid)
        counts = self.counts(grid)
        if max(counts) > grid.tokens:
            raise ConfigError(
                f"{counts[0]} clusters of queries and {counts[1]} of keys",
                f"a call has {grid.tokens} tokens",
                "use fewer, or 0, which chooses",
            )
        queries, keys = (
            jnp.zeros((grid.batch, grid.heads, count, grid.head_dim)) for count in counts
        )
        if self.every == 1 or not self._alike:
            return Centroids(Tally.empty(), queries, keys)
        heads, tokens = grid.batch * grid.heads, grid.tokens
        sizes = zip(counts, self.sizes(grid), strict=True)
        rows, columns = (Packed.empty(heads, tokens, count, size) for count, size in sizes)
        marked = jnp.zeros((heads, *counts), bool)
        listed = Listed(rows, columns, marked, jnp.zeros(()))
        return Centroids(Tally.empty(), queries, keys, listed)

    def sizes(self, grid: TokenGrid) -> tuple[int, int]:
        """Returns the tokens of a block of queries and of keys."""
        size = blocks_of(grid, self.block).size
        return size, min(size, KEYS)

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """Returns the clusters of queries and of keys."""
        asked = (self.queries, self.keys)
        queries, keys = (
            count or min(most, max(grid.tokens // size, 1))
            for count, most, size in zip(asked, MOST, self.sizes(grid), strict=True)
        )
        return queries, keys

    def attend(self, q, k, v, state: Centroids, call: AttentionCall, among: Among):
        """Attends within the blocks of the clusters that are listed."""
        k = call.turn(k)
        if self.is_dense:
            return among(q, k, v, None), state._replace(tally=state.tally.add(1.0, 1.0, dense=True))

        def ordered(asks: Array, told: Array, listed: Listed) -> Any:
            return asks, told, listed, listed.rows.apply(q), listed.columns.apply(k)

        def search() -> Any:  # which puts the same tokens in order to add them up
            return ordered(*self.searched(q, k, state, call))

        if self.period == 1 or not self.warm:
            asks, told, listed, *parts = search()
        else:
            found = (x.reshape(-1, *x.shape[2:]) for x in (state.queries, state.keys))
            kept: Any = (*found, state.listed)
            due = call.row.index % self.every == 0
            asks, told, listed, *parts = jax.lax.cond(due, search, lambda: ordered(*kept))
        mask, parts = mask_of(listed, self.sizes(call.grid)), [*parts, listed.columns.apply(v)]
        out = listed.rows.undo(among(*(x[:, :, None] for x in parts), mask)[:, :, 0])
        seen: Any = jnp.nan
        if self.recall_queries:
            seen = recall(q, k, listed, self.recall_queries)
        tally, kept = state.tally.add(listed.density, seen, dense=False), state.listed and listed
        heads = (call.grid.batch, call.grid.heads)
        asks, told = (x.reshape(*heads, *x.shape[1:]) for x in (asks, told))
        out = jnp.moveaxis(out.reshape(*heads, *out.shape[1:]), 1, 2)
        return out, Centroids(tally, asks, told, kept)

    def searched(
        self,
        q: Float[Array, "B S N D"],
        k: Float[Array, "B S N D"],
        state: Centroids,
        call: AttentionCall,
    ) -> tuple[Float[Array, "G C D"], Float[Array, "G c D"], Listed]:
        """Returns the centroids of queries and keys, and what attends to what."""
        sizes = self.sizes(call.grid)
        asks, rows = self.clusters(q, state.queries, sizes[0])
        told, columns = self.clusters(k, state.keys, sizes[1])
        marked = self.listed_clusters(asks, told, call)
        listed = Listed(rows, columns, marked, density(marked, asks, told))
        return asks.centroids, told.centroids, listed

    def clusters(
        self, x: Float[Array, "B S N D"], last: Float[Array, "B N C D"], block: int
    ) -> tuple[Clusters, Packed]:
        """Divides the tokens of every head; all heads search from the same tokens."""
        x, rounds = jax.lax.stop_gradient(x), self.later
        if not self.warm:
            last, rounds = jnp.moveaxis(x[:, some_of(x.shape[1], last.shape[2])], 2, 1), self.first
        return means(x, last.reshape(-1, *last.shape[2:]), rounds, block)

    def listed_clusters(
        self, asks: Clusters, told: Clusters, call: AttentionCall
    ) -> Bool[Array, "G C c"]:
        """Marks the clusters of keys that each cluster of queries attends to.

        Those of most attention, until their estimated share is `mass`, or less where the pairs of
        tokens would be more than the density allows. Of clusters with a query of a frame above
        `dense_above` all are marked.
        """
        scores = jnp.einsum("gqd,gkd->gqk", asks.centroids, told.centroids)
        scores = scores * asks.centroids.shape[-1] ** -0.5
        shares = jax.nn.softmax(scores + jnp.log(told.sizes.astype(jnp.float32))[:, None], -1)
        shares = jax.lax.optimization_barrier(shares)  # or XLA compiles for two minutes on a GPU
        better = shares[..., None, :] > shares[..., None]
        before = jnp.sum(jnp.where(better, shares[..., None, :], 0.0), -1)  # share of better ones
        before = jnp.minimum(before, 1.0)
        tokens = call.grid.tokens
        cost = asks.sizes[..., None] / tokens * told.sizes[:, None] / tokens
        allowed = self.density_of(call) + 1e-5  # the sums are rounded
        allowed = jnp.broadcast_to(allowed, (call.grid.batch, call.grid.heads)).reshape(-1, 1)
        limit, step = jnp.zeros_like(allowed), self.mass
        for _ in range(DIVISIONS):
            step /= PARTS
            limits = jnp.minimum(limit + step * jnp.arange(1, PARTS + 1)[None], self.mass)
            counts = before[:, None] <= limits[..., None, None]
            spent = jnp.sum(jnp.where(counts, cost[:, None], 0.0), (2, 3))
            limit += step * jnp.sum(spent <= allowed, 1, keepdims=True)
            limit = jnp.minimum(limit, self.mass)
        marked = before <= limit[..., None]
        if self.dense_above == 1:
            return marked
        noisy = jnp.repeat(call.t > self.dense_above, call.grid.tokens_per_frame, 1)
        noisy = jnp.repeat(noisy, call.grid.heads, 0)
        rows = jnp.arange(len(noisy))[:, None]
        every = jnp.zeros(asks.sizes.shape, bool).at[rows, asks.labels].max(noisy)
        return marked | every[..., None]


def mask_of(listed: Listed, sizes: tuple[int, int]) -> BlockMask:
    """Returns the lists of blocks of queries and keys, one batch row for each head."""
    rows, columns, marked, _ = listed
    short = ((0, 0), (0, 1), (0, 1))  # blocks without a cluster are listed nowhere, and list none
    found = jnp.pad(marked, short)
    owner = jnp.broadcast_to(columns.owner[:, None], (*found.shape[:2], columns.owner.shape[1]))
    by_cluster = BlockMask.from_dense(
        jnp.take_along_axis(found, owner, 2)[:, None],
        kv_lengths=columns.lengths,
        block_q=sizes[0],
        block_kv=sizes[1],
        q_len=found.shape[1] * sizes[0],
        kv_len=columns.source.shape[1],
    )
    owner = rows.owner[:, None]  # all blocks of a cluster have its list
    return dataclasses.replace(
        by_cluster,
        kv_indices=jnp.take_along_axis(by_cluster.kv_indices, owner[..., None], 2),
        kv_counts=jnp.take_along_axis(by_cluster.kv_counts, owner, 2),
        q_len=rows.source.shape[1],
    )


def density(listed: Bool[Array, "G C c"], asks: Clusters, told: Clusters) -> Float[Array, ""]:
    """Returns the share of all pairs of tokens that a map of clusters lists, mean over heads."""
    tokens = asks.labels.shape[1]
    queries, keys = (x.sizes.astype(jnp.float32) / tokens for x in (asks, told))
    return jnp.mean(jnp.einsum("gqk,gq,gk->g", listed.astype(jnp.float32), queries, keys))


def recall(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S N D"],
    listed: Listed,
    queries: int,
) -> Float[Array, ""]:
    """Estimates the share of dense attention on listed clusters from some queries of each head."""
    chosen = some_of(q.shape[1], queries)
    some = q[:, chosen]
    scores = jnp.einsum("bqnd,bknd->bnqk", some, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, -1).reshape(-1, len(chosen), k.shape[1])
    kept = jnp.take_along_axis(listed.marked, listed.rows.labels[:, chosen, None], 1)
    kept = jnp.take_along_axis(kept, listed.columns.labels[:, None], 2)
    return jnp.mean(jnp.sum(jnp.where(kept, weights, 0.0), -1))
