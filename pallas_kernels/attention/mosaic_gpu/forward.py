"""Forward pass for Hopper.

A block of threads per processor stays; two of its warpgroups compute, or three for heads of 64, one
loads, and takes from a queue which tile of queries is next: lists may differ in length.

In order of gain: heads are slowest in the order of tiles, so that keys and values stay in the L2
cache; scores of one tile of keys and the product with the values of the one before are in flight
together, the softmax under the second; releases are hardware barriers; row sums stay per lane until
a tile ends; what is accumulated is rescaled only where the maximum of a row has grown by more than
`GROWTH`; every other list is walked backwards, because what was read last is still in the cache;
queries stay in registers, of which three warpgroups have too few. Heads of 64 are bound by powers
of two, of which a processor has 16 in a clock, and not by products: a third warpgroup fills gaps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.attention.mosaic_gpu.intrinsics import (
    COLUMN,
    FIRST_BARRIER,
    REGISTERS,
    REGISTERS_OF_THREE,
    ROW,
    SWIZZLE,
    TILE,
    arrive,
    cut_columns,
    divide,
    launch,
    listed_cells,
    load,
    pin,
    pl,
    plgpu,
    product,
    scale_rows,
    slot_of,
    sync,
    take,
    words_of,
)
from pallas_kernels.attention.mosaic_gpu.skipping import begin
from pallas_kernels.attention.mosaic_gpu.softmax import Softmax, across
from pallas_kernels.attention.mosaic_gpu.tiles import (
    ALWAYS,
    MASKED,
    Kinds,
    Lists,
    Tiles,
    Work,
    joined,
)
from pallas_kernels.attention.past import Past


def forward(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    work: Work,
    scale: float,
    processors: int,
    past: Past | None = None,
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N L"]]:
    """Returns attended values and the log-sum-exp of the scores, up to the end of the last tile.

    Args:
        q: Queries, 16 bits; their number is a multiple of 8, `D` is 64 or 128.
        k: Keys, as many or a divisor of the heads.
        v: Values.
        work: What is attended to.
        scale: Factor of the scores, positive.
        processors: Streaming multiprocessors of the device.
        past: Keys and values before these, as `MosaicGPU.reads` allows them.
    """
    lists, tiles, kinds = work
    batch, count, heads, size = q.shape
    groups, computing = tiles.groups, tiles.groups * tiles.parts
    length = lists.q_limits.shape[1] * tiles.q
    parts = max(kinds.divided, 1) * kinds.parts
    arrivals = 1 + kinds.placed + (kinds.cell > 0)
    options, cache = _Options(tiles, kinds, Softmax.of(scale, kinds.restricted), processors), ()
    if past is not None:
        options = options._replace(past=past.length(tiles.kv * tiles.kv_split) // tiles.kv)
        stacks = (x.reshape(-1, *x.shape[2:]) for x in (past.k, past.v))
        cache = (*stacks, jnp.reshape(past.row * q.shape[0], 1))

    def shared(*shape: int) -> Any:
        return plgpu.SMEM((*shape, size), q.dtype, transforms=SWIZZLE)

    # Of the queries, or flax.linen.scan (jax 0.10) would share one counter among all calls.
    taken = jax.new_ref(0 * lax.bitcast_convert_type(q[0, 0, 0, :1], jnp.int16).astype(jnp.int32))
    out, lse, part, part_lse = launch(
        "block_sparse_attention_forward",
        functools.partial(_kernel, options),
        (
            jax.ShapeDtypeStruct((batch, count, heads, size), q.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.int32),
            jax.ShapeDtypeStruct((parts, tiles.q, size), q.dtype),
            jax.ShapeDtypeStruct((parts, tiles.q), jnp.int32),
        ),
        [
            shared(groups, tiles.q),
            shared(groups * tiles.k_stages, tiles.kv),
            shared(groups * tiles.v_stages, tiles.kv),
            shared(computing, 64),
            plgpu.SMEM((computing + groups, 64), jnp.int32),
            plgpu.SMEM((groups * tiles.k_stages, tiles.kv), lists.kv_places.dtype),
            plgpu.Barrier(num_barriers=groups),
            plgpu.Barrier(num_barriers=groups * tiles.k_stages, num_arrivals=arrivals),
            plgpu.Barrier(num_barriers=groups * tiles.v_stages),
            *([plgpu.SMEM((groups * tiles.k_stages, 32), jnp.int32)] if kinds.cell else []),
        ],
        {"processor": processors},
        computing,
    )(q, k, v, taken, *(x for x in lists if x is not None), *cache)
    lse, part_lse = (lax.bitcast_convert_type(x, jnp.float32) for x in (lse, part_lse))
    return joined(out, lse, part, part_lse, work)


class _Options(NamedTuple):
    tiles: Tiles
    kinds: Kinds
    softmax: Softmax
    processors: int
    past: int = 0  # tiles of keys that are in a cache


class _Refs(NamedTuple):
    q: Any
    k: Any
    v: Any
    taken: Any
    lists: Lists
    past: Any  # keys, values, and their first row; empty without
    out: Any
    lse: Any
    part: Any  # the same of parts of lists
    part_lse: Any
    q_tile: Any
    k_tiles: Any
    v_tiles: Any
    out_tile: Any
    small: Any  # bits of log-sum-exps of each warpgroup; what each group is at; its end: `pin`
    place_tiles: Any
    q_full: Any
    k_full: Any
    v_full: Any
    word_tiles: Any


def _kernel(options: _Options, *refs: Any) -> None:
    count = len(Lists._fields) - (not options.kinds.skips)
    end = 4 + count + (3 if options.past else 0)
    rest = refs[end:] if options.kinds.cell else (*refs[end:], None)
    lists, past = Lists(*refs[4 : 4 + count]), refs[4 + count : end]
    names = _Refs._make((*refs[:4], lists, past, *rest))
    warpgroup, processor = lax.axis_index("warpgroup"), lax.axis_index("processor")
    together, computing = options.tiles.groups == 1, names.out_tile.shape[0]
    registers = REGISTERS_OF_THREE if computing > 2 else REGISTERS[names.q.shape[3]]

    def compute() -> None:
        _Group(options, names, processor, 0 if together else warpgroup).compute(warpgroup)

    def load_all(warp: Any) -> None:
        @pl.when(warp < options.tiles.groups)
        def _():
            _Group(options, names, processor, 0 if together else warp).produce()

    divide(warpgroup, computing, registers, compute, load_all)


class _Tile(NamedTuple):
    """One tile of queries, with a part of what it attends to."""

    batch: Any
    head: Any
    index: Any
    row: tuple[Any, Any, Any]  # of the lists
    steps: Any  # tiles of keys
    begin: Any = 0  # tiles of keys of the list that come before
    slot: Any = -1  # of the result of a part of a list


class _Group:
    """Warpgroups that work at one tile: what those that compute and those that load agree on."""

    def __init__(self, options: _Options, refs: _Refs, processor: Any, index: Any):
        tiles = options.tiles
        self.tiles, self.kinds, self.softmax = tiles, options.kinds, options.softmax
        self.past, self.past_row = options.past, refs.past[2][0] if options.past else None
        self.refs, self.index = refs, index
        self.workers = options.processors * tiles.groups
        self.first = processor * tiles.groups + index
        self.per_head = refs.lists.q_limits.shape[1]
        self.total = refs.lists.order.shape[1]
        self.threads = 128 * tiles.parts + 32
        self.turn = refs.out_tile.shape[0] + index  # row of `small`
        self.held = tiles.parts < 3  # whether queries are in registers
        k_stages, v_stages = tiles.k_stages, tiles.v_stages
        base = FIRST_BARRIER + index * (k_stages + v_stages + 1)
        self.k_free = lambda step: base + slot_of(step, k_stages)
        self.v_free = lambda step: base + k_stages + slot_of(step, v_stages)
        self.q_free = base + k_stages + v_stages
        self.k_slot = lambda step: index * k_stages + slot_of(step, k_stages)
        self.v_slot = lambda step: index * v_stages + slot_of(step, v_stages)

    def tile(self, place: Any, *rest: Any) -> _Tile:
        """Returns the tile of queries at a place, with the rest of its fields."""
        lists, heads = self.refs.lists, self.refs.q.shape[2]
        sequence, index = lax.div(place, self.per_head), lax.rem(place, self.per_head)
        batch, head = lax.div(sequence, heads), lax.rem(sequence, heads)
        row = (
            batch if lists.indices.shape[0] > 1 else 0,
            head if lists.indices.shape[1] > 1 else 0,
            lax.div(index, self.tiles.q_split),
        )
        return _Tile(batch, head, index, row, *rest)

    # What loads

    def produce(self) -> None:
        """Loads the queries, keys and values of all tiles, as room for them is made."""
        refs = self.refs

        def produce_tile(state: Any) -> Any:
            done, turn, found, first = state
            tile, steps = self.tile(*found), found[1]
            self.load_queries(tile, found[0])

            def advance(step: Any, state: Any) -> Any:  # keys are one step ahead of values
                index, *listed = state
                following = self.entry(turn, tile, step + 1)  # a list is read one step ahead
                index_of_keys = self.load_keys(tile, done + step, *listed)
                pl.when(step > 0)(lambda: self.load_values(tile, done + step - 1, index))
                return index_of_keys, *following

            last, *_ = lax.fori_loop(0, steps, advance, (jnp.int32(0), *first))
            following = self.read(self.workers + take(refs.taken))
            pl.when(steps > 0)(lambda: self.load_values(tile, done + steps - 1, last))
            return done + steps, *following

        state = jnp.int32(0), *self.read(jnp.int32(self.first))
        _, _, found, _ = lax.while_loop(lambda x: x[1] < self.total, produce_tile, state)
        self.load_queries(self.tile(*found), jnp.int32(-1))  # there are no more

    def read(self, turn: Any) -> tuple[Any, ...]:
        """Reads what a turn begins with, which takes long: before the turn before ends."""
        number, order = jnp.minimum(turn, self.total - 1), self.refs.lists.order
        found = tuple(order[row, number] for row in range(4))
        return turn, found, self.entry(turn, self.tile(*found), jnp.int32(0))

    def entry(self, turn: Any, tile: _Tile, step: Any) -> tuple[Any, Any]:
        """Returns the list entry of a tile of keys, and its part of it; the last is repeated."""
        last, split = jnp.maximum(tile.steps - 1, 0), self.tiles.kv_split
        step = jnp.minimum(step, last)
        backwards = (lax.div(turn, self.workers) & 1) == 1
        step = step if self.kinds.skips else jnp.where(backwards, last - step, step)
        place = tile.begin + step
        return self.refs.lists.indices[*tile.row, lax.div(place, split)], lax.rem(place, split)

    def load_queries(self, tile: _Tile, place: Any) -> None:
        """Loads the queries of a tile, and tells what computes where it is."""
        refs, row = self.refs, self.turn
        sync(self.q_free, self.threads)
        for column, number in enumerate((place, tile.steps, tile.slot)):
            refs.small[row, column] = number
        rows = pl.ds(tile.index * self.tiles.q, self.tiles.q)
        source = refs.q.at[tile.batch, rows, tile.head]
        plgpu.copy_gmem_to_smem(source, refs.q_tile.at[self.index], refs.q_full.at[self.index])

    def load_keys(self, tile: _Tile, number: Any, block: Any, part: Any) -> Any:
        """Loads a tile of keys, with what is masked of it, and returns which it is."""
        refs, kv, places = self.refs, self.tiles.kv, self.refs.lists.kv_places
        slot = self.k_slot(number)
        partial = block & 1 if self.kinds.placed else 0
        block = block >> 1 if self.kinds.placed else block
        index = block * self.tiles.kv_split + part
        if self.kinds.kv_cut:
            limits = refs.lists.kv_limits
            limit = limits[tile.batch if limits.shape[0] > 1 else 0, index]
        sync(self.k_free(number), self.threads)
        if self.kinds.kv_cut:
            refs.small[self.turn, self.column(slot)] = limit
        full = refs.k_full.at[slot]
        self.copy(0, tile, index, refs.k_tiles.at[slot], full)
        if self.kinds.placed:
            rows = pl.ds(index * kv, kv)
            source = places.at[tile.batch if places.shape[0] > 1 else 0, partial, rows]
            plgpu.copy_gmem_to_smem(source, refs.place_tiles.at[slot], full)
        if self.kinds.cell:
            place = tile.batch, tile.head, lax.div(tile.index, 2 // self.tiles.parts)
            source = words_of(refs.lists.words, place, partial, index)
            plgpu.copy_gmem_to_smem(source, refs.word_tiles.at[slot], full)
        return index

    def load_values(self, tile: _Tile, number: Any, index: Any) -> None:
        """Loads a tile of values."""
        slot = self.v_slot(number)
        sync(self.v_free(number), self.threads)
        self.copy(1, tile, index, self.refs.v_tiles.at[slot], self.refs.v_full.at[slot])

    def copy(self, which: int, tile: _Tile, index: Any, target: Any, full: Any) -> None:
        """Loads a tile of keys (0) or values (1), of the cache or after it."""
        refs, kv = self.refs, self.tiles.kv
        head = lax.div(tile.head, refs.q.shape[2] // refs.k.shape[2])

        def copy(source: Any, row: Any, index: Any) -> None:
            tokens = source.at[row, pl.ds(index * kv, kv), head]
            plgpu.copy_gmem_to_smem(tokens, target, full)

        new = refs.v if which else refs.k
        if not self.past:
            copy(new, tile.batch, index)
            return
        cached = index < self.past
        pl.when(cached)(lambda: copy(refs.past[which], self.past_row + tile.batch, index))
        pl.when(~cached)(lambda: copy(new, tile.batch, index - self.past))

    # What computes

    def compute(self, warpgroup: Any) -> None:
        """Computes 64 rows of all tiles, and writes them."""
        refs, tiles = self.refs, self.tiles
        part = warpgroup if tiles.parts > 1 else 0
        attend = begin(self, part) if self.kinds.skips else self.attend
        for slot in range(tiles.k_stages):
            arrive(self.k_free(jnp.int32(slot)), self.threads)
        for slot in range(tiles.v_stages):
            arrive(self.v_free(jnp.int32(slot)), self.threads)
        arrive(self.q_free, self.threads)

        def turn() -> tuple[Any, ...]:
            plgpu.barrier_wait(refs.q_full.at[self.index])
            return tuple(refs.small[self.turn, column] for column in range(3))

        def compute_tile(state: Any) -> Any:
            done, *found = state
            q = refs.q_tile.at[self.index, pl.ds(part * 64, 64)]
            if self.held:
                q, *found = lax.optimization_barrier((load(q, layout=TILE), *found))
                arrive(self.q_free, self.threads)  # the next tile's may be loaded
            tile = self.tile(*found[:2], 0, found[2])
            rows = pl.ds(tile.index * tiles.q + part * 64, 64)
            half = part if tiles.parts > 1 else lax.rem(tile.index, 2)
            out, lse = lax.cond(
                tile.steps > 0,
                lambda: attend(tile, q, rows, half, done),
                lambda: _nothing(q.shape[1], q.dtype),
            )
            if not self.held:
                arrive(self.q_free, self.threads)
            if self.kinds.q_cut:
                out, lse = self.cut(tile, part, out, lse)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the tile before has been read
            refs.out_tile[warpgroup] = out
            refs.small[warpgroup] = lax.bitcast_convert_type(lse, jnp.int32)
            plgpu.commit_smem()
            self.store(tile, warpgroup, part, rows)
            return done + tile.steps, *turn()

        lax.while_loop(lambda x: x[1] >= 0, compute_tile, (jnp.int32(0), *turn()))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def store(self, tile: _Tile, warpgroup: Any, part: Any, rows: Any) -> None:
        """Writes 64 rows of a tile, or of a part of its list."""
        refs = self.refs

        def copy(out: Any, lse: Any) -> None:
            plgpu.copy_smem_to_gmem(refs.out_tile.at[warpgroup], out, commit_group=False)
            plgpu.copy_smem_to_gmem(refs.small.at[warpgroup], lse)

        def copy_whole() -> None:
            lse = refs.lse.at[tile.batch, tile.head, rows]
            copy(refs.out.at[tile.batch, rows, tile.head], lse)

        if not self.kinds.divided:
            copy_whole()
            return
        own, whole = pl.ds(part * 64, 64), tile.slot < 0
        pl.when(whole)(copy_whole)
        pl.when(~whole)(
            lambda: copy(refs.part.at[tile.slot, own], refs.part_lse.at[tile.slot, own])
        )

    def attend(self, tile: _Tile, q: Any, rows: Any, half: Any, done: Any) -> tuple[Array, Array]:
        """Returns the values that 64 queries attend to, and their log-sum-exp."""
        refs, places = self.refs, self.places(tile, rows)
        plgpu.barrier_wait(refs.k_full.at[self.k_slot(done)])

        s = product(q, refs.k_tiles.at[self.k_slot(done)])
        s = self.masked(s, self.k_slot(done), places, half)
        if self.kinds.kv_cut:
            s = cut_columns(s, self.limit(self.k_slot(done)), MASKED)
        arrive(self.k_free(done), self.threads)
        p, peak, total = self.softmax.first(s)
        acc = plgpu.layout_cast(jnp.zeros((64, q.shape[1]), jnp.float32), TILE)

        shape = s.shape

        def advance(step: Any, state: Any) -> Any:
            acc, peak, total, p = state
            now = done + step

            def overlap(held: Any) -> None:
                acc_ref, p_ref, peak_ref, total_ref, factor_ref = held
                plgpu.barrier_wait(refs.k_full.at[self.k_slot(now)])
                limit = self.limit(self.k_slot(now))  # before scores are waited for

                def products(s_ref: Any) -> Array:
                    plgpu.wgmma(s_ref, q, refs.k_tiles.at[self.k_slot(now)].T)
                    plgpu.barrier_wait(refs.v_full.at[self.v_slot(now - 1)])
                    plgpu.wgmma(acc_ref, p, refs.v_tiles.at[self.v_slot(now - 1)])
                    return plgpu.wgmma_accumulator_load(s_ref, wait_n=1)  # values still run

                s = pl.run_scoped(products, plgpu.ACC(shape, jnp.float32))
                s = self.masked(lax.optimization_barrier(s), self.k_slot(now), places, half)
                arrive(self.k_free(now), self.threads)
                p_ref[...], peak_ref[...], total_ref[...], factor_ref[...] = (
                    lax.optimization_barrier(self.softmax.further(s, limit, peak, total))
                )
                pin(refs.small, total_ref[...])  # all weights are computed while values run
                plgpu.wgmma_wait(0)

            blank = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), TILE)
            acc, p, peak, total, factor = pl.run_state(overlap)(
                (plgpu.ACC.init(acc), blank, peak, total, peak)
            )
            acc = lax.optimization_barrier(acc)
            arrive(self.v_free(now - 1), self.threads)
            return scale_rows(acc, factor), peak, total, p.astype(q.dtype)

        state = (acc, peak, total, p.astype(q.dtype))
        acc, peak, total, p = lax.fori_loop(1, tile.steps, advance, state)
        last = done + tile.steps - 1
        plgpu.barrier_wait(refs.v_full.at[self.v_slot(last)])
        values = refs.v_tiles.at[self.v_slot(last)]
        acc = pl.run_state(lambda ref: plgpu.wgmma(ref, p, values))(plgpu.ACC.init(acc))
        arrive(self.v_free(last), self.threads)
        out, lse = self.softmax.end(acc, peak, total)
        return out.astype(q.dtype), lse

    # What is restricted

    def places(self, tile: _Tile, rows: Any) -> Any:
        """Returns the places of 64 queries."""
        if not self.kinds.placed:
            return None
        places = self.refs.lists.q_places
        batch = tile.batch if places.shape[0] > 1 else 0
        return load(places.at[batch, rows], layout=ROW, optimized=False)

    def column(self, slot: Any) -> Any:
        """Returns where in `small` it is said how many keys of a tile count."""
        return 3 + slot - self.index * self.tiles.k_stages

    def limit(self, slot: Any) -> Any:
        """Returns how many keys of a tile count; None where all do."""
        return self.refs.small[self.turn, self.column(slot)] if self.kinds.kv_cut else None

    def masked(self, s: Array, slot: Any, places: Any, half: Any) -> Array:
        """Masks the scores of pairs that do not count; `half` is that of 128 queries."""
        if self.kinds.cell:
            words = self.refs.word_tiles.at[slot, pl.ds(half * 16, 16)]
            listed = listed_cells(words, s.shape[1], self.kinds.cell)
            s = jnp.where(listed, s, MASKED)
        if not self.kinds.placed:
            return s
        of_keys = self.refs.place_tiles.at[slot]

        def mask() -> Array:
            columns = load(of_keys, layout=COLUMN, optimized=False)
            allowed = lax.broadcast_in_dim(columns, s.shape, [1]) <= across(places, s)
            return jnp.where(allowed, s, MASKED)

        whole = jnp.asarray(ALWAYS, of_keys.dtype)
        return lax.cond(of_keys[self.tiles.kv - 1] != whole, mask, lambda: s)

    def counted(self, tile: _Tile, part: Any) -> Array:
        """Returns which of 64 queries count."""
        limits = self.refs.lists.q_limits
        limit = limits[tile.batch if limits.shape[0] > 1 else 0, tile.index]
        row = plgpu.broadcasted_iota(jnp.int32, (64,), 0, layout=ROW)
        return row + part * 64 < limit

    def cut(self, tile: _Tile, part: Any, out: Array, lse: Array) -> tuple[Array, Array]:
        """Leaves nothing of queries that do not count."""
        counts = self.counted(tile, part)
        out = jnp.where(across(counts, out), out, jnp.zeros_like(out))
        return out, jnp.where(counts, lse, -jnp.inf)


def _nothing(size: int, dtype: Any) -> tuple[Array, Array]:
    out = plgpu.layout_cast(jnp.zeros((64, size), dtype), TILE)
    return out, plgpu.layout_cast(jnp.full((64,), -jnp.inf, jnp.float32), ROW)
