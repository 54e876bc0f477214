"""Backward pass for Hopper: one kernel, five products per tile.

A warpgroup owns 64 keys, and walks the queries that attend to them, 64 at a time:
`S = K Q^T`, `P = exp(S - lse)`, `dP = V dO^T`, `dV += P dO`, `dS = P (dP - delta)`,
`dQ = dS^T K`, `dK += dS Q`. Gradients of keys and values stay in registers. Those of queries are
added to a float32 buffer in memory, in the order of registers; their last bits depend on the order
of additions. Walks begin where the other processors are at that time, so that they find queries in
the L2 cache. Where heads of queries share keys, each has gradients of keys and values of its own,
which are added up at the end: long walks over all of them drift apart.
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
    LOG2E,
    REGISTERS,
    ROW,
    SWIZZLE,
    TILE,
    arrive,
    fence_shared,
    from_fragments,
    launch,
    listed_cells,
    load,
    pl,
    plgpu,
    slot_of,
    store_fragment,
    sync,
    words_of,
)
from pallas_kernels.attention.mosaic_gpu.tiles import NEVER
from pallas_kernels.attention.mosaic_gpu.walks import STEP, Shape, Walks

FRAGMENT = (16, 256)  # a float32 tile of 64 by 64, in the order of registers


def backward(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    d_out: Float[Array, "B Q N D"],
    lse: Float[Array, "B N L"],
    delta: Float[Array, "B N L"],
    walks: tuple[Walks, Shape],
    scale: float,
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B K H D"], Float[Array, "B K H D"]]:
    """Returns the gradients of queries, keys and values.

    Args:
        q: Queries, 16 bits; their number is a multiple of 8, `D` is 64 or 128.
        k: Keys.
        v: Values.
        d_out: Gradient of the attended values.
        lse: Log-sum-exp of the scores, up to the end of the last step, inf for a query without
            keys.
        delta: What is subtracted from the gradients of weights, as `Kernel.backward` says.
        walks: Which queries attend to which keys.
        scale: Factor of the scores, positive.
    """
    lists, shape = walks
    batch, length, heads, size = q.shape
    steps, parts, groups = lse.shape[2] // STEP, shape.parts, shape.groups
    q_stages, out_stages = shape.q_stages, shape.out_stages
    columns, arrivals = size // STEP, 2 + shape.partial + (shape.cell > 0)
    d_q = jax.new_ref(jnp.zeros((batch, heads, steps, columns, *FRAGMENT), jnp.float32))

    def shared(*sizes: int) -> Any:
        return plgpu.SMEM(sizes, q.dtype, transforms=SWIZZLE)

    rows = plgpu.SMEM((groups * q_stages, STEP), jnp.float32)
    options = _Options(shape, scale)
    own = (batch, k.shape[1], heads, size)
    blocks = -(-lists.starts.shape[2] // groups)
    d_k, d_v = launch(
        "block_sparse_attention_backward",
        functools.partial(_kernel, options),
        (jax.ShapeDtypeStruct(own, k.dtype), jax.ShapeDtypeStruct(own, v.dtype)),
        [
            shared(2, STEP, size),
            shared(2, STEP, size),
            shared(groups * q_stages, STEP, size),
            shared(groups * out_stages, STEP, size),
            rows,
            rows,
            plgpu.SMEM((groups * q_stages, STEP), jnp.int16),
            shared(groups * (q_stages if parts > 1 else 1), shape.keys, STEP),
            plgpu.SMEM((2, *FRAGMENT), jnp.float32),
            plgpu.Barrier(num_barriers=groups, num_arrivals=2 * parts),
            plgpu.Barrier(num_barriers=groups * q_stages, num_arrivals=arrivals),
            plgpu.Barrier(num_barriers=groups * out_stages, num_arrivals=2),
            *([plgpu.SMEM((groups * q_stages, 32), jnp.int32)] if shape.cell else []),
        ],
        {"head": batch * heads, "block": blocks},
    )(q, k, v, d_out, lse * LOG2E, delta, d_q, *lists)
    d_k, d_v = (over_shared_heads(x, k.shape[2]) for x in (d_k, d_v))
    return (from_fragments(d_q[...])[:, :length] * scale).astype(q.dtype), d_k, d_v


def over_shared_heads(x: Float[Array, "B K N D"], count: int) -> Float[Array, "B K H D"]:
    """Adds up the gradients of the heads of queries that share each of so many of keys."""
    if x.shape[2] == count:
        return x
    apart = x.reshape(*x.shape[:2], count, -1, x.shape[3])
    return jnp.sum(apart, 3, jnp.float32).astype(x.dtype)


class _Options(NamedTuple):
    shape: Shape
    scale: float


class _Refs(NamedTuple):
    q: Any
    k: Any
    v: Any
    d_out: Any
    lse: Any
    delta: Any
    d_q: Any
    walks: Walks
    d_k: Any
    d_v: Any
    k_tile: Any
    v_tile: Any
    q_tiles: Any
    out_tiles: Any
    lse_tiles: Any
    delta_tiles: Any
    place_tiles: Any
    d_s: Any
    d_q_tiles: Any
    keys_full: Any
    q_full: Any
    out_full: Any
    word_tiles: Any


def _kernel(options: _Options, *refs: Any) -> None:
    count = len(Walks._fields)
    rest = refs[7 + count :] if options.shape.cell else (*refs[7 + count :], None)
    names = _Refs._make((*refs[:7], Walks._make(refs[7 : 7 + count]), *rest))
    warpgroup = lax.axis_index("warpgroup")
    place = lax.axis_index("head"), lax.axis_index("block")
    groups, registers = options.shape.groups, REGISTERS[names.q.shape[3]]

    def compute(number: Any) -> None:
        plgpu.set_max_registers(registers[0], action="increase")
        _Group(options, names, place, 0 if groups == 1 else number).compute(number)

    if groups == 1:
        pl.when(warpgroup < 2)(lambda: compute(warpgroup))
    else:  # code of its own for each, whose addresses are constants: or registers spill
        for number in range(2):
            pl.when(warpgroup == number)(functools.partial(compute, number))

    @pl.when(warpgroup == 2)
    def _move():
        plgpu.set_max_registers(registers[1], action="decrease")

        @plgpu.warp_map
        def _(warp):
            @pl.when(warp < groups)
            def _():
                _Group(options, names, place, 0 if groups == 1 else warp).load()

            @pl.when((warp >= 2) & (warp < 2 + groups))
            def _():
                _Group(options, names, place, 0 if groups == 1 else warp - 2).store()


class _Walk(NamedTuple):
    """The queries that attend to a tile of keys."""

    row: tuple[Any, Any, Any]  # of the lists
    blocks: Any
    start: Any


class _Group:
    """Warpgroups that own one tile of keys: what those that compute, load and store agree on."""

    def __init__(self, options: _Options, refs: _Refs, place: tuple[Any, Any], index: Any):
        shape = options.shape
        self.shape, self.options, self.refs = shape, options, refs
        self.index, self.place = index, place
        self.size = refs.q.shape[3]
        heads, (sequence, block) = refs.q.shape[2], place
        self.batch, self.head = lax.div(sequence, heads), lax.rem(sequence, heads)
        self.tile = block * shape.groups + index
        self.tiles = refs.walks.starts.shape[2]
        self.threads = 128 * shape.parts + 32
        q_stages, out_stages = shape.q_stages, shape.out_stages
        base = FIRST_BARRIER + index * (q_stages + out_stages)
        self.q_free = lambda step: base + slot_of(step, q_stages)
        self.out_free = lambda step: base + q_stages + slot_of(step, out_stages)
        self.q_slot = lambda step: index * q_stages + slot_of(step, q_stages)
        self.out_slot = lambda step: index * out_stages + slot_of(step, out_stages)
        after = FIRST_BARRIER + shape.groups * (q_stages + out_stages)
        self.d_s_full, self.d_q_full, self.d_q_free = after, after + 2, after + 4
        self.exchange = shape.parts == 2 and self.size == 2 * STEP  # of dS, for halves of dQ
        self.pieces = 1 if self.exchange else self.size // STEP

    def again(self, step: Any) -> "_Group":
        """Returns the same, found once more at a step: what is kept from the start spills."""
        zero = lax.shift_right_logical(step, 30)  # which the compiler does not know
        sequence, block = self.place
        return _Group(self.options, self.refs, (sequence + zero, block + zero), self.index)

    def rows(self, part: Any) -> Any:
        """Returns the keys of a warpgroup."""
        return pl.ds(self.tile * self.shape.keys + part * STEP, STEP)

    @property
    def walk(self) -> _Walk:
        """The walk of this tile."""
        walks = self.refs.walks
        tile = jnp.minimum(self.tile, self.tiles - 1)
        row = (
            self.batch if walks.counts.shape[0] > 1 else 0,
            self.head if walks.counts.shape[1] > 1 else 0,
            lax.div(tile, self.shape.kv_split),
        )
        blocks = jnp.where(self.tile < self.tiles, walks.counts[row], 0)
        return _Walk(row, blocks, walks.starts[self.batch, self.head, tile])

    def entry(self, walk: _Walk, block: Any) -> Any:
        """Returns the list entry of a block of the walk, which goes round; the last is repeated."""
        entry = jnp.minimum(block, walk.blocks - 1) + walk.start
        return jnp.maximum(jnp.where(entry >= walk.blocks, entry - walk.blocks, entry), 0)

    def each_block(self, visit: Any) -> None:
        """Calls `visit(number, block of queries)`; a list is read one block ahead."""
        walk, indices = self.walk, self.refs.walks.indices

        def advance(number: Any, block: Any) -> Any:
            following = indices[*walk.row, self.entry(walk, number + 1)]
            visit(number, block)
            return following

        lax.fori_loop(0, walk.blocks, advance, indices[*walk.row, self.entry(walk, jnp.int32(0))])

    # What loads

    def load(self) -> None:
        """Loads a tile of keys and values, then the queries that attend to them."""
        refs, split = self.refs, self.shape.q_split
        kv_head = lax.div(self.head, refs.q.shape[2] // refs.k.shape[2])

        @pl.when(self.tile < self.tiles)
        def _():
            for part in range(self.shape.parts):
                slot = self.index + part
                for source, target in ((refs.k, refs.k_tile), (refs.v, refs.v_tile)):
                    plgpu.copy_gmem_to_smem(
                        source.at[self.batch, self.rows(part), kv_head],
                        target.at[slot],
                        refs.keys_full.at[self.index],
                    )

        def load_step(step: Any, index: Any, partial: Any) -> None:
            rows = pl.ds(index * STEP, STEP)
            slot, full = self.q_slot(step), refs.q_full.at[self.q_slot(step)]
            sync(self.q_free(step), self.threads)
            source = refs.q.at[self.batch, rows, self.head]
            plgpu.copy_gmem_to_smem(source, refs.q_tiles.at[slot], full)
            source = refs.lse.at[self.batch, self.head, rows]
            plgpu.copy_gmem_to_smem(source, refs.lse_tiles.at[slot], full)
            if self.shape.partial:
                places = refs.walks.q_places
                source = places.at[self.batch if places.shape[0] > 1 else 0, partial, rows]
                plgpu.copy_gmem_to_smem(source, refs.place_tiles.at[slot], full)
            if self.shape.cell:
                place = self.batch, self.head, lax.div(self.tile, 2 // self.shape.parts)
                source = words_of(refs.walks.words, place, partial, index)
                plgpu.copy_gmem_to_smem(source, refs.word_tiles.at[slot], full)
            slot, full = self.out_slot(step), refs.out_full.at[self.out_slot(step)]
            sync(self.out_free(step), self.threads)
            source = refs.d_out.at[self.batch, rows, self.head]
            plgpu.copy_gmem_to_smem(source, refs.out_tiles.at[slot], full)
            source = refs.delta.at[self.batch, self.head, rows]
            plgpu.copy_gmem_to_smem(source, refs.delta_tiles.at[slot], full)

        def load_block(number: Any, block: Any) -> None:
            partial = block & 1 if self.shape.partial else 0
            block = block >> 1 if self.shape.partial else block
            for step in range(split):
                load_step(number * split + step, block * split + step, partial)

        self.each_block(load_block)

    # What stores

    def store(self) -> None:
        """Adds the gradients of queries, as they are computed, to those in memory."""
        refs, split = self.refs, self.shape.q_split
        owners = [self.index + part for part in range(self.shape.parts)]
        for owner in owners:
            arrive(self.d_q_free + owner, 160)

        def store_block(_: Any, block: Any) -> None:
            block = block >> 1 if self.shape.partial else block
            for step, piece in ((s, p) for s in range(split) for p in range(self.pieces)):
                for owner in owners:
                    column = owner if self.exchange else piece
                    target = refs.d_q.at[self.batch, self.head, block * split + step, column]
                    sync(self.d_q_full + owner, 160)
                    plgpu.copy_smem_to_gmem(refs.d_q_tiles.at[owner], target, reduction_op="add")
                for left, owner in reversed(list(enumerate(reversed(owners)))):
                    plgpu.wait_smem_to_gmem(left, wait_read_only=True)
                    arrive(self.d_q_free + owner, 160)

        self.each_block(store_block)
        plgpu.wait_smem_to_gmem(0)

    # What computes

    def compute(self, warpgroup: Any) -> None:
        """Computes the gradients of 64 keys and values, and those of the queries on the way."""
        refs, options, split = self.refs, self.options, self.shape.q_split
        part = warpgroup if self.shape.parts > 1 else 0
        for slot in range(self.shape.q_stages):
            arrive(self.q_free(jnp.int32(slot)), self.threads)
        for slot in range(self.shape.out_stages):
            arrive(self.out_free(jnp.int32(slot)), self.threads)

        @pl.when(self.tile < self.tiles)
        def _():
            plgpu.barrier_wait(refs.keys_full.at[self.index])
            zero = plgpu.layout_cast(jnp.zeros((STEP, self.size), jnp.float32), TILE)

            def advance(_: Any, state: Any) -> Any:
                step, *sums = state
                return step + 1, *self.step(warpgroup, part, step, *sums)

            steps = self.walk.blocks * split
            step, d_k, d_v = lax.fori_loop(0, steps, advance, (jnp.int32(0), zero, zero))
            end = self.again(step)
            if self.exchange:
                sync(self.d_s_full, 256)  # both have read the keys, whose place is taken
            refs.k_tile[warpgroup] = (d_k * options.scale).astype(refs.d_k.dtype)
            refs.v_tile[warpgroup] = d_v.astype(refs.d_v.dtype)
            plgpu.commit_smem()
            target = refs.d_k.at[end.batch, end.rows(part), end.head]
            plgpu.copy_smem_to_gmem(refs.k_tile.at[warpgroup], target, commit_group=False)
            target = refs.d_v.at[end.batch, end.rows(part), end.head]
            plgpu.copy_smem_to_gmem(refs.v_tile.at[warpgroup], target)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def step(
        self, warpgroup: Any, part: Any, step: Any, d_k: Array, d_v: Array
    ) -> tuple[Array, Array]:
        """Adds to the gradients what 64 queries contribute."""
        refs = self.refs
        q_slot, out_slot = self.q_slot(step), self.out_slot(step)
        d_s_slot = q_slot if self.shape.parts > 1 else self.index
        own = pl.ds(part * STEP, STEP)
        # Always 0, which the compiler does not know: or it keeps all addresses and spills.
        zero = lax.shift_right_logical(step, 30)
        tile = plgpu.ACC((STEP, STEP), jnp.float32)
        places = self.again(step).places(part)

        def contribute(sums: Any) -> None:
            d_k_ref, d_v_ref = sums

            def products(s_ref: Any, d_p_ref: Any) -> tuple[Array, Array]:
                plgpu.barrier_wait(refs.q_full.at[q_slot])
                plgpu.wgmma(s_ref, refs.k_tile.at[warpgroup + zero], refs.q_tiles.at[q_slot].T)
                lse = load(refs.lse_tiles.at[q_slot], layout=COLUMN, optimized=False)
                plgpu.barrier_wait(refs.out_full.at[out_slot])
                values = refs.v_tile.at[warpgroup + zero]
                plgpu.wgmma(d_p_ref, values, refs.out_tiles.at[out_slot].T)
                s = lax.optimization_barrier(plgpu.wgmma_accumulator_load(s_ref, wait_n=1))
                p = self.weights(s, lse, q_slot, places, part)
                # Issued here, this keeps the exponentials before the wait for d_p.
                plgpu.wgmma(d_v_ref, p.astype(refs.q.dtype), refs.out_tiles.at[out_slot])
                p = lax.optimization_barrier(p)
                return p, lax.optimization_barrier(plgpu.wgmma_accumulator_load(d_p_ref, wait_n=1))

            p, d_p = pl.run_scoped(products, tile, tile)
            delta = load(refs.delta_tiles.at[out_slot], layout=COLUMN, optimized=False)
            d_s = (p * (d_p - _down(delta, d_p))).astype(refs.q.dtype)
            self.share(refs.d_s.at[d_s_slot, own], d_s, warpgroup)

            def to_keys() -> None:
                plgpu.wgmma(d_k_ref, d_s, refs.q_tiles.at[q_slot])

            def to_queries(piece: int, d_q_ref: Any) -> Array:
                if not self.exchange and not piece:
                    to_keys()
                columns = pl.ds((warpgroup if self.exchange else piece) * STEP, STEP)
                for keys in range(2) if self.exchange else (warpgroup,):
                    seen = pl.ds(keys * STEP, STEP) if self.exchange else own
                    rows = refs.d_s.at[d_s_slot, seen].T
                    plgpu.wgmma(d_q_ref, rows, refs.k_tile.at[keys + zero, :, columns])
                if not piece:
                    plgpu.wgmma_wait(2)
                    arrive(self.out_free(step), self.threads)
                if self.exchange:
                    to_keys()
                return plgpu.wgmma_accumulator_load(d_q_ref, wait_n=int(self.exchange))

            for piece in range(self.pieces):
                d_q = pl.run_scoped(functools.partial(to_queries, piece), tile)
                self.hand_over(lax.optimization_barrier(d_q), warpgroup)
            plgpu.wgmma_wait(0)
            arrive(self.q_free(step), self.threads)

        return pl.run_state(contribute)((plgpu.ACC.init(d_k), plgpu.ACC.init(d_v)))

    def share(self, target: Any, d_s: Array, warpgroup: Any) -> None:
        """Stores the gradients of scores where products read them."""
        target[...] = d_s
        fence_shared()
        if self.exchange:
            sync(self.d_s_full, 256)
        else:
            sync(self.d_s_full + warpgroup, 128)

    def hand_over(self, d_q: Array, warpgroup: Any) -> None:
        """Gives gradients of queries to what stores them."""
        sync(self.d_q_free + warpgroup, 160)
        store_fragment(self.refs.d_q_tiles.at[warpgroup], d_q)
        fence_shared()
        arrive(self.d_q_full + warpgroup, 160)

    # What is restricted

    def places(self, part: Any) -> Any:
        """Returns the places of 64 keys."""
        if not self.shape.partial:
            return None
        places = self.refs.walks.kv_places
        batch = self.batch if places.shape[0] > 1 else 0
        return places.at[batch, self.rows(part)]

    def weights(self, s: Array, lse: Array, slot: Any, places: Any, part: Any) -> Array:
        """Returns the weights of scores, 0 where pairs do not count."""
        s = s * (self.options.scale * LOG2E) - _down(lse, s)
        # Scores of keys that do not count are 0, and may be far above all others.
        p = jnp.exp2(jnp.minimum(s, 0.0) if self.shape.keys_cut else s)
        if self.shape.cell:
            part = part if self.shape.parts > 1 else lax.rem(self.tile, 2)
            words = self.refs.word_tiles.at[slot, pl.ds(part * 16, 16)]
            listed = listed_cells(words, STEP, self.shape.cell)
            p = jnp.where(listed, p, 0.0)
        if not self.shape.partial:
            return p
        of_queries = self.refs.place_tiles.at[slot]

        def mask() -> Array:
            columns = load(of_queries, layout=COLUMN, optimized=False)
            of_keys = load(places, layout=ROW, optimized=False)
            of_keys = lax.broadcast_in_dim(of_keys, p.shape, [0])
            return jnp.where(of_keys <= _down(columns, p), p, 0.0)

        return lax.cond(of_queries[0] != NEVER, mask, lambda: p)


def _down(columns: Array, like: Array) -> Array:
    return lax.broadcast_in_dim(columns, like.shape, [1])
