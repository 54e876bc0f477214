"""Which blocks of keys each block of queries attends to, as lists that are data."""

import contextlib
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

TIME_BITS = 20  # of a coordinate `t << 20 | h << 10 | w`: t counts from bit 20 on

_STATIC = {"static": True}


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockMask:
    """Lists of key blocks, one per block of queries, batch row and head.

    Axes: `B` and `N` are those of the queries or 1, `Q` and `K` count blocks of queries and
    keys, `M` is the width of the lists. The last blocks may reach beyond the sequences.

    Attributes:
        kv_indices: i32[B, N, Q, M], key blocks: first those attended to in full, then those
            of which some pairs are masked; the rest of a list repeats any block.
        kv_counts: i32[B, N, Q], blocks that count; 0 gives rows of zeros.
        kv_full_counts: i32[B, N, Q], how many of them are attended to in full; None is all.
        q_lengths: i32[B, Q], queries of a block that count, from its first; None is all.
        kv_lengths: i32[B, K], the same of keys.
        q_coords: i32[B, L], place `t << 20 | h << 10 | w` of each query, -1 for none. Read
            only where a block is not attended to in full; None masks nothing there.
        kv_coords: i32[B, L], the same of keys.
        skip_log2: f32[B, N, Q], at most 0: a listed block is left out where the best score of
            each of its queries is below the best of the blocks listed before it by more than
            this, in powers of two. -inf leaves out nothing, None costs nothing.
        block_q: Queries of a block.
        block_kv: Keys of a block.
        q_len: Length of the sequence of queries.
        kv_len: Length of the sequence of keys.
        causal_time: In blocks that are not attended to in full, whether keys of a later
            time than the query are masked.
    """

    MAX_TIME: typing.ClassVar[int] = 2048

    kv_indices: Int[Array, "B N Q M"]
    kv_counts: Int[Array, "B N Q"]
    kv_full_counts: Int[Array, "B N Q"] | None = None
    q_lengths: Int[Array, "B Q"] | None = None
    kv_lengths: Int[Array, "B K"] | None = None
    q_coords: Int[Array, "B L"] | None = None
    kv_coords: Int[Array, "B L"] | None = None
    skip_log2: Float[Array, "B N Q"] | None = None
    block_q: int = dataclasses.field(default=128, metadata=_STATIC)
    block_kv: int = dataclasses.field(default=128, metadata=_STATIC)
    q_len: int = dataclasses.field(default=0, metadata=_STATIC)
    kv_len: int = dataclasses.field(default=0, metadata=_STATIC)
    causal_time: bool = dataclasses.field(default=False, metadata=_STATIC)

    @classmethod
    def from_dense(
        cls,
        blocks: Bool[Array | np.ndarray, "B N Q K"],
        partial: Bool[Array | np.ndarray, "B N Q K"] | None = None,
        *,
        max_blocks: int | None = None,
        **fields: typing.Any,
    ) -> "BlockMask":
        """Makes lists from a map of blocks.

        Args:
            blocks: True where a block of keys is attended to.
            partial: True where only some pairs of such a block count; None is nowhere.
            max_blocks: Width of the lists; a longer list loses its last blocks. None is
                the number of key blocks, so that none does.
            **fields: The other fields; `q_len` and `kv_len` must be among them.

        Raises:
            ValueError: If the map is not of the size that the lengths and blocks give.

        Example:
            >>> blocks = np.array([[[[True, False], [True, True]]]])
            >>> size = {"block_q": 4, "block_kv": 4, "q_len": 8, "kv_len": 8}
            >>> mask = BlockMask.from_dense(blocks, **size)
            >>> mask.kv_counts.tolist(), float(mask.density)
            ([[[1, 2]]], 0.75)
        """
        found = cls(jnp.zeros((1, 1, 0, 0), jnp.int32), jnp.zeros((1, 1, 0), jnp.int32), **fields)
        if blocks.shape[2:] != found.grid:
            raise ValueError(
                f"a map of {blocks.shape[2]} x {blocks.shape[3]} blocks, but {found.q_len} queries "
                f"in blocks of {found.block_q} and {found.kv_len} keys in blocks of "
                f"{found.block_kv} are {found.grid[0]} x {found.grid[1]}"
            )
        width, here = max_blocks or blocks.shape[3], contextlib.nullcontext()
        if isinstance(blocks, np.ndarray) and not isinstance(partial, jax.Array):
            here = jax.ensure_compile_time_eval()  # lists that are known here are constants
        with here:
            indices, counts, full_counts = _lists(jnp.asarray(blocks), partial, width)
        lists = {"kv_indices": indices, "kv_counts": counts, "kv_full_counts": full_counts}
        return dataclasses.replace(found, **lists)

    @classmethod
    def from_top(
        cls,
        scores: Float[Array, "B N Q K"],
        *,
        count: int,
        mass: float = 1.0,
        **fields: typing.Any,
    ) -> "BlockMask":
        """Lists the blocks of highest score.

        Args:
            scores: Worth of each block of keys for each block of queries, not negative
                where `mass` is below 1.
            count: Blocks of a list, at most.
            mass: Share of the sum of a row's scores at which its list is long enough,
                in (0, 1].
            **fields: The other fields; `q_len` and `kv_len` must be among them.

        Raises:
            ValueError: If `count` or `mass` is out of range, or as `from_dense`.

        Example:
            >>> scores = jnp.array([[[[0.1, 0.9, 0.3]]]])
            >>> size = {"block_q": 4, "block_kv": 4, "q_len": 4, "kv_len": 12}
            >>> BlockMask.from_top(scores, count=2, **size).to_dense().tolist()
            [[[[False, True, True]]]]
        """
        return cls.from_dense(best_blocks(scores, count, mass), max_blocks=count, **fields)

    @classmethod
    def full(
        cls,
        q_len: int,
        kv_len: int,
        block_q: int = 128,
        block_kv: int = 128,
        kv_count: Int[Array, ""] | None = None,
    ) -> "BlockMask":
        """Returns the mask that allows every pair, of the first `kv_count` keys if given.

        Example:
            >>> BlockMask.full(256, 512).grid
            (2, 4)
        """
        blocks = np.ones((1, 1, -(-q_len // block_q), -(-kv_len // block_kv)), bool)
        mask = cls.from_dense(
            blocks, block_q=block_q, block_kv=block_kv, q_len=q_len, kv_len=kv_len
        )
        if kv_count is None:
            return mask
        size = mask.block_kv
        lengths = jnp.clip(kv_count - size * jnp.arange(mask.grid[1]), 0, size).astype(jnp.int32)
        counts = jnp.broadcast_to(jnp.sum(lengths > 0, dtype=jnp.int32), mask.kv_counts.shape)
        return dataclasses.replace(mask, kv_counts=counts, kv_lengths=lengths[None])

    @classmethod
    def causal(
        cls, time: Int[np.ndarray, " L"], block_q: int = 128, block_kv: int = 128
    ) -> "BlockMask":
        """Returns the mask of one sequence that sees its past: keys not later than the query.

        Args:
            time: Time of each token, from 0 on, below `MAX_TIME`; known on the host.
            block_q: Queries of a block.
            block_kv: Keys of a block.

        Raises:
            ValueError: If a time is out of range.

        Example:
            >>> mask = BlockMask.causal(np.array([0, 0, 1, 1]), block_q=2, block_kv=2)
            >>> mask.token_mask()[0, 0].astype(int).tolist()
            [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
        """
        if time.min() < 0 or time.max() >= cls.MAX_TIME:
            raise ValueError(f"times {time.min()} to {time.max()} are not in 0..{cls.MAX_TIME - 1}")
        length = len(time)
        newest = np.maximum.reduceat(time, np.arange(0, length, block_q))[:, None]
        oldest = np.minimum.reduceat(time, np.arange(0, length, block_q))[:, None]
        first = np.minimum.reduceat(time, np.arange(0, length, block_kv))[None]
        last = np.maximum.reduceat(time, np.arange(0, length, block_kv))[None]
        blocks, partial = newest >= first, oldest < last
        coords = jnp.asarray(time[None] << TIME_BITS, jnp.int32)
        return cls.from_dense(
            blocks[None, None],
            partial[None, None],
            q_coords=coords,
            kv_coords=coords,
            block_q=block_q,
            block_kv=block_kv,
            q_len=length,
            kv_len=length,
            causal_time=True,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of blocks of queries and of keys."""
        return -(-self.q_len // self.block_q), -(-self.kv_len // self.block_kv)

    @property
    def density(self) -> Float[Array, ""]:
        """Share of all pairs that lie in listed blocks: 1 is dense."""
        rows, columns = (
            np.minimum(block, length - block * np.arange(count)).astype(np.float32)
            for block, length, count in zip(
                (self.block_q, self.block_kv), (self.q_len, self.kv_len), self.grid, strict=True
            )
        )
        per_row = self.to_dense() @ columns / self.kv_len
        return jnp.mean(per_row @ rows / self.q_len)

    def to_dense(self) -> Bool[Array, "B N Q K"]:
        """Returns the map of listed blocks."""
        return self._map(jnp.zeros_like(self.kv_counts))

    def transpose(self) -> "BlockMask":
        """Returns the mask with queries and keys exchanged, whose lists have full width."""

        def past(coords: Array | None) -> Array | None:
            if coords is None or not self.causal_time:
                return coords
            turned = coords ^ (self.MAX_TIME - 1 << TIME_BITS)  # t becomes MAX_TIME - 1 - t
            return jnp.where(coords >= 0, turned, coords)

        return BlockMask.from_dense(
            self.to_dense().swapaxes(2, 3),
            self._partial().swapaxes(2, 3),
            q_lengths=self.kv_lengths,
            kv_lengths=self.q_lengths,
            q_coords=past(self.kv_coords),
            kv_coords=past(self.q_coords),
            block_q=self.block_kv,
            block_kv=self.block_q,
            q_len=self.kv_len,
            kv_len=self.q_len,
            causal_time=self.causal_time,
        )

    def coarsen(self, rows: int = 1, columns: int = 1) -> "BlockMask":
        """Returns a mask of larger blocks that allows at least the same pairs.

        Args:
            rows: Blocks of queries that become one.
            columns: Blocks of keys that become one.

        Raises:
            ValueError: If single blocks are cut short: larger ones have no such lengths.
        """
        if self.q_lengths is not None or self.kv_lengths is not None:
            raise ValueError("a mask with q_lengths or kv_lengths has no coarser one")

        def joined(blocks: Array) -> Array:
            short = [(0, 0), (0, 0), (0, -blocks.shape[2] % rows), (0, -blocks.shape[3] % columns)]
            blocks = jnp.pad(blocks, short)
            height, width = blocks.shape[2] // rows, blocks.shape[3] // columns
            return blocks.reshape(*blocks.shape[:2], height, rows, width, columns).any((3, 5))

        listed, partial = self.to_dense(), self._partial()
        rest: dict[str, typing.Any] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)[5:]
        }
        rest |= {"block_q": self.block_q * rows, "block_kv": self.block_kv * columns}
        if self.skip_log2 is not None:  # the most careful of the blocks that are joined
            short = ((0, 0), (0, 0), (0, -self.grid[0] % rows))
            limits = jnp.pad(self.skip_log2, short)
            rest["skip_log2"] = limits.reshape(*limits.shape[:2], -1, rows).min(3)
        return BlockMask.from_dense(joined(listed), ~joined(listed & ~partial), **rest)

    def check(self) -> "BlockMask":
        """Returns itself if the lists hold valid ids, each once; reads them on the host.

        Raises:
            ValueError: If they do not; the first list at fault is named.
        """
        ids, counts = np.asarray(self.kv_indices), np.asarray(self.kv_counts)
        for place in np.ndindex(*counts.shape):
            row, count = ids[place], counts[place]
            where = f"the list of batch row {place[0]}, head {place[1]}, query block {place[2]}"
            if not 0 <= count <= len(row):
                raise ValueError(f"{where} counts {count} blocks, but has room for {len(row)}")
            if row.size and not 0 <= row.min() <= row.max() < self.grid[1]:
                raise ValueError(f"{where} has ids {row.min()}..{row.max()} of {self.grid[1]}")
            if len(set(row[:count])) < count:
                raise ValueError(f"{where} names a block twice: {row[:count].tolist()}")
        return self

    def check_sizes(self, q: typing.Any, k: typing.Any) -> None:
        """Raises `ValueError` if it is not for queries `[B, Q, N, D]` and keys `[B, K, H, D]`."""
        if (self.q_len, self.kv_len) != (q.shape[1], k.shape[1]):
            raise ValueError(
                f"the mask is for {self.q_len} queries and {self.kv_len} keys, "
                f"but there are {q.shape[1]} and {k.shape[1]}"
            )
        if q.shape[2] % k.shape[2]:
            raise ValueError(
                f"{q.shape[2]} heads of queries cannot share {k.shape[2]} heads of keys: "
                "the second must divide the first"
            )
        batch, heads = self.kv_counts.shape[:2]
        if batch not in (1, q.shape[0]) or heads not in (1, q.shape[2]):
            raise ValueError(
                f"the mask is for {batch} batch rows and {heads} heads, but there are "
                f"{q.shape[0]} and {q.shape[2]}; 1 serves all"
            )

    def token_mask(self) -> Bool[Array, "B N q k"]:
        """Returns the mask of pairs: quadratic in the lengths."""
        rows, columns = (np.arange(n) for n in (self.q_len, self.kv_len))

        def spread(blocks: Array) -> Array:
            return blocks[:, :, rows // self.block_q][..., columns // self.block_kv]

        allowed = spread(self.to_dense())
        q, kv = self.q_coords, self.kv_coords
        if self.by_place and q is not None and kv is not None:
            pairs = self.allows(q[:, None, :, None], kv[:, None, None])
            allowed &= pairs | ~spread(self._partial())
        if self.q_lengths is not None:
            allowed &= self.q_counted[:, None, : self.q_len, None]
        if self.kv_lengths is not None:
            allowed &= self.kv_counted[:, None, None, : self.kv_len]
        return allowed

    @property
    def by_place(self) -> bool:
        """Whether pairs are masked in blocks that are not attended to in full."""
        placed = self.q_coords is not None and self.kv_coords is not None
        return placed and self.kv_full_counts is not None

    @property
    def cuts_keys(self) -> bool:
        """Whether some keys of blocks do not count: of short ones, or beyond the end of all."""
        return self.kv_lengths is not None or self.kv_len % self.block_kv > 0

    def places(self, nowhere: int) -> tuple[Int[Array, "B Q"], Int[Array, "B K"]]:
        """Returns numbers of queries and keys, up to the end of the last blocks, instead of places.

        A pair that `allows` would allow has a key whose number is not above the query's.

        Args:
            nowhere: Number of a key without a place, above `MAX_TIME`.

        Raises:
            ValueError: If the mask is not `by_place`.
        """
        q, kv = self.q_coords, self.kv_coords
        if q is None or kv is None:
            raise ValueError("a mask without q_coords and kv_coords has no places")

        def number(coords: Array, none: int, block: int) -> Array:
            time = coords >> TIME_BITS if self.causal_time else jnp.zeros_like(coords)
            short = ((0, 0), (0, -coords.shape[1] % block))
            return jnp.pad(jnp.where(coords < 0, none, time), short, constant_values=none)

        return number(q, -1, self.block_q), number(kv, nowhere, self.block_kv)

    @property
    def q_counted(self) -> Bool[Array, "B Q"]:
        """Whether a query counts, up to the end of the last block."""
        return _counted(self.q_len, self.block_q, self.q_lengths)

    @property
    def kv_counted(self) -> Bool[Array, "B K"]:
        """Whether a key counts, up to the end of the last block."""
        return _counted(self.kv_len, self.block_kv, self.kv_lengths)

    def allows(self, q_coords: Int[Array, "*b"], kv_coords: Int[Array, "*c"]) -> Bool[Array, "*d"]:
        """Says which pairs count where a block is not attended to in full."""
        allowed = (q_coords >= 0) & (kv_coords >= 0)
        if self.causal_time:
            allowed &= kv_coords >> TIME_BITS <= q_coords >> TIME_BITS
        return allowed

    def marked(self, entries: Bool[Array, "b n Q M"]) -> Bool[Array, "b n Q K"]:
        """Returns the map of those blocks that some entries of the lists name."""
        width = jnp.arange(self.kv_indices.shape[3])[None, None, None]
        counts = entries & (width < self.kv_counts[..., None])
        place = jnp.where(counts, self.kv_indices, self.grid[1])
        return _put(jnp.zeros((*counts.shape[:3], self.grid[1]), bool), place, counts)

    def _partial(self) -> Bool[Array, "B N Q K"]:
        """Marks the blocks that are not attended to in full."""
        first = self.kv_counts if self.kv_full_counts is None else self.kv_full_counts
        return self._map(first)

    def _map(self, first: Int[Array, "B N Q"]) -> Bool[Array, "B N Q K"]:
        """Marks the blocks of the list entries from `first` on."""
        return _marked(self.kv_indices, first, self.kv_counts, self.grid[1])


# Each is one program where a mask is made outside of any, instead of one for each operation.


@functools.partial(jax.jit, static_argnums=2)
def _lists(
    blocks: Bool[Array, "B N Q K"], partial: Bool[Array, "B N Q K"] | None, width: int
) -> tuple[Int[Array, "B N Q M"], Int[Array, "B N Q"], Int[Array, "B N Q"] | None]:
    """Returns the first `width` blocks of a map, full ones first, and how many there are."""
    masked = jnp.zeros_like(blocks) if partial is None else blocks & partial
    full = blocks & ~masked
    counts, full_counts = (jnp.sum(x, -1, dtype=jnp.int32) for x in (blocks, full))
    after_full = full_counts[..., None] + jnp.cumsum(masked, -1)
    place = jnp.where(masked, after_full, jnp.cumsum(full, -1)) - 1
    place = jnp.where(blocks, place, width)
    ids = jnp.broadcast_to(jnp.arange(blocks.shape[3], dtype=jnp.int32), blocks.shape)
    indices = jnp.zeros((*blocks.shape[:3], width), jnp.int32)
    indices = _put(indices, place, ids)
    full_counts = None if partial is None else jnp.minimum(full_counts, width)
    return indices, jnp.minimum(counts, width), full_counts


@functools.partial(jax.jit, static_argnums=3)
def _marked(
    indices: Int[Array, "B N Q M"], first: Int[Array, "B N Q"], last: Int[Array, "B N Q"], size: int
) -> Bool[Array, "B N Q K"]:
    """Returns the map of `size` columns of the entries from `first` on, before `last`."""
    entry = jnp.arange(indices.shape[-1])[None, None, None]
    counts = (entry >= first[..., None]) & (entry < last[..., None])
    place = jnp.where(counts, indices, size)
    empty = jnp.zeros((*first.shape, size), bool)
    return _put(empty, place, counts)


def best_blocks(
    scores: Float[Array, "B N Q K"], count: int, mass: float = 1.0
) -> Bool[Array, "B N Q K"]:
    """Marks the blocks that `BlockMask.from_top` lists; of equal scores the first.

    Raises:
        ValueError: If `count` or `mass` is out of range.
    """
    if not 1 <= count <= scores.shape[3] or not 0 < mass <= 1:
        raise ValueError(
            f"{count} of {scores.shape[3]} blocks up to a mass of {mass}: the number must be "
            f"in 1..{scores.shape[3]} and the mass in (0, 1]"
        )
    best, ids = _top(scores, count)
    wanted = jnp.ones(best.shape, bool)
    if mass < 1:
        before = jnp.cumsum(best, -1) - best
        wanted = before < mass * jnp.sum(scores, -1, keepdims=True)
    return _put(jnp.zeros(scores.shape, bool), ids, wanted)


def _top(scores: Float[Array, "B N Q K"], count: int) -> tuple[Array, Array]:
    """Returns the best scores of each row and their places, as `jax.lax.top_k` does.

    Over a mesh by a sort, which XLA splits over samples, heads and queries; of a `top_k` every
    device would get the scores of all. Alone `top_k` is faster, three times so on a CPU.
    """
    if jax.sharding.get_abstract_mesh().empty:
        best, ids = jax.lax.top_k(scores, count)
        return best, ids
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 3)
    least, ids = jax.lax.sort((-scores, places), dimension=3, num_keys=1, is_stable=True)
    return -least[..., :count], ids[..., :count]


def _put(
    rows: Shaped[Array, "B N Q M"], place: Int[Array, "B N Q K"], values: Shaped[Array, "B N Q K"]
) -> Shaped[Array, "B N Q M"]:
    """Puts values at places of their rows, those beyond a row nowhere.

    Row by row, unlike `jnp.put_along_axis`, which XLA cannot split over devices: each of them
    would get the lists of all heads.
    """

    def one(row: Array, place: Array, values: Array) -> Array:
        return row.at[place].set(values, mode="drop")

    return jax.vmap(jax.vmap(jax.vmap(one)))(rows, place, values)


def _counted(length: int, block: int, lengths: Array | None) -> Bool[Array, "B L"]:
    token = jnp.arange(-(-length // block) * block)
    known = (token < length)[None]
    return known if lengths is None else known & (token[None] % block < lengths[:, token // block])
