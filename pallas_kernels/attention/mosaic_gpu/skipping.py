"""The walk along a list that leaves out tiles of low scores (skip-softmax), on Hopper.

Reference: BLASST, Yuan et al., arXiv:2512.12087; the rule is that of `left_out`.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pallas_kernels.attention.mosaic_gpu.intrinsics import (
    FIRST_BARRIER,
    ROW,
    TILE,
    arrive,
    cut_columns,
    either,
    pin,
    pl,
    plgpu,
    product,
    reaches,
    scale_rows,
    sync,
)
from pallas_kernels.attention.mosaic_gpu.sizes import FREE_BARRIERS, ForwardSizes
from pallas_kernels.attention.mosaic_gpu.tiles import MASKED
from pallas_kernels.block_mask import BlockMask

VOTES = 32  # column of `small` from which on warpgroups say what they need
TURNS = 8  # tiles of keys of which they do: one is ahead by at most the stages of keys


def refusal(mask: BlockMask, sizes: ForwardSizes) -> str:
    """Returns why blocks cannot be skipped in such tiles; empty if they can."""
    tile, block = (sizes.q, sizes.kv), (mask.block_q, mask.block_kv)
    barriers = max(128 // sizes.q, 1) * (sizes.k_stages + sizes.v_stages + 1) + 2
    if tile == block and sizes.q <= 128 and barriers <= FREE_BARRIERS:
        return ""
    blocks = f"{block[0]} queries and {block[1]} keys"
    return f"blocks of {blocks} are skipped by their scores (skip_log2), which its tiles are not"


def begin(group: Any, part: Any) -> Any:
    """Makes a warpgroup say nothing yet, and returns what it calls for every tile of queries.

    `(tile, q, rows, half, done) -> (values, log-sum-exp)`, as the one that skips nothing. The
    warpgroups of a tile of queries leave out a tile of keys together: its softmax and the product
    with its values. One that needs it goes on, one that does not waits for what the other says.
    The peaks of rows are the best scores before.
    """
    if group.tiles.parts > 1:
        for turn in range(TURNS):
            group.refs.small[group.turn, VOTES + TURNS * part + turn] = jnp.int32(-1)
        sync(_first_vote(group), 256)

    def attend(tile: Any, q: Any, rows: Any, half: Any, done: Any) -> tuple[Array, Array]:
        return _Walk(group, part, tile, q, rows, half).attend(tile.steps, done)

    return attend


def _first_vote(group: Any) -> int:
    """Returns the first hardware barrier that the others leave."""
    tiles = group.tiles
    return FIRST_BARRIER + tiles.groups * (tiles.k_stages + tiles.v_stages + 1)


class _Walk:
    """How a warpgroup walks along a list."""

    def __init__(self, group: Any, part: Any, tile: Any, q: Any, rows: Any, half: Any):
        self.group, self.q, self.half = group, q, half
        self.refs, self.softmax = group.refs, group.softmax._replace(growth=0.0)
        self.part = part
        self.places = group.places(tile, rows)
        limit = self.refs.lists.skip_log2[tile.batch, tile.head, tile.index]
        self.limits = jnp.where(group.counted(tile, part), limit, jnp.inf)

    def attend(self, steps: Any, done: Any) -> tuple[Array, Array]:
        """As `begin` says, of so many tiles of keys, when others were done before."""
        group, refs, dtype = self.group, self.refs, self.q.dtype
        p, peak, total = self.softmax.first(self.scores(done))
        acc = plgpu.layout_cast(jnp.zeros((64, self.q.shape[1]), jnp.float32), TILE)

        def advance(step: Any, state: Any) -> Any:
            acc, peak, total, p, needed = state
            now = done + step
            acc, *further, factor = lax.cond(
                needed != 0,
                lambda: self.beside_values(now, acc, peak, total, p),
                lambda: self.alone(now, acc, peak, total),
            )
            arrive(group.v_free(now - 1), group.threads)
            return scale_rows(acc, factor), *further

        state = (acc, peak, total, p.astype(dtype), jnp.int32(1))
        acc, peak, total, p, needed = lax.fori_loop(1, steps, advance, state)
        last = done + steps - 1
        plgpu.barrier_wait(refs.v_full.at[group.v_slot(last)])
        values = refs.v_tiles.at[group.v_slot(last)]

        def add() -> Array:
            return pl.run_state(lambda ref: plgpu.wgmma(ref, p, values))(plgpu.ACC.init(acc))

        acc = lax.cond(needed != 0, add, lambda: acc)
        arrive(group.v_free(last), group.threads)
        out, lse = self.softmax.end(acc, peak, total)
        return out.astype(dtype), lse

    def scores(self, now: Any) -> Array:
        """Returns the scores of a tile of keys, which are waited for."""
        group, refs = self.group, self.refs
        plgpu.barrier_wait(refs.k_full.at[group.k_slot(now)])
        return self.masked(product(self.q, refs.k_tiles.at[group.k_slot(now)]), now)

    def masked(self, s: Array, now: Any) -> Array:
        """Masks scores, after which the keys are read no more."""
        group, slot = self.group, self.group.k_slot(now)
        s = group.masked(s, slot, self.places, self.half)
        if group.kinds.kv_cut:
            s = cut_columns(s, group.limit(slot), MASKED)
        arrive(group.k_free(now), group.threads)
        return s

    def needed(self, top: Array, peak: Array, now: Any) -> Any:
        """Returns 1 if a row of the tile of queries needs a tile of keys, else 0."""
        group, part = self.group, self.part
        vote = _first_vote(group) + (part if group.tiles.parts > 1 else group.index)
        mine = reaches(top, peak + self.limits, vote)
        if group.tiles.parts == 1:
            return mine
        turns = (VOTES + TURNS * whose + (now & (TURNS - 1)) for whose in (part, 1 - part))
        own, other = (self.refs.small.at[group.turn, pl.ds(turn, 1)] for turn in turns)
        return either(mine, own, other, now)

    def further(self, s: Array, now: Any, peak: Array, total: Array) -> tuple[Array, ...]:
        """As `Softmax.further`, and whether the tile is needed; else weights mean nothing."""
        top = self.softmax.top(s)
        needed = self.needed(top, peak, now)
        one = plgpu.layout_cast(jnp.ones((64,), jnp.float32), ROW)
        found = lax.cond(
            needed != 0,
            lambda: self.softmax.weights(s, top, peak, total),
            lambda: (s, peak, total, one),
        )
        return *found, needed

    def beside_values(
        self, now: Any, acc: Array, peak: Array, total: Array, p: Array
    ) -> tuple[Array, ...]:
        """Computes a tile of keys while the values of the one before are added."""
        group, refs = self.group, self.refs

        def overlap(held: Any) -> None:
            acc_ref, *found_refs = held
            plgpu.barrier_wait(refs.k_full.at[group.k_slot(now)])

            def products(s_ref: Any) -> Array:
                plgpu.wgmma(s_ref, self.q, refs.k_tiles.at[group.k_slot(now)].T)
                plgpu.barrier_wait(refs.v_full.at[group.v_slot(now - 1)])
                plgpu.wgmma(acc_ref, p, refs.v_tiles.at[group.v_slot(now - 1)])
                return plgpu.wgmma_accumulator_load(s_ref, wait_n=1)  # values still run

            s = pl.run_scoped(products, plgpu.ACC(blank.shape, jnp.float32))
            s = self.masked(lax.optimization_barrier(s), now)
            found = lax.optimization_barrier(self.further(s, now, peak, total))
            for ref, value in zip(found_refs, found, strict=True):
                ref[...] = value
            pin(refs.small, found_refs[2][...])  # all weights are computed while values run
            plgpu.wgmma_wait(0)

        blank = plgpu.layout_cast(jnp.zeros((64, group.tiles.kv), jnp.float32), TILE)
        state = (plgpu.ACC.init(acc), blank, peak, total, peak, jnp.int32(0))
        acc, p, peak, total, factor, needed = pl.run_state(overlap)(state)
        acc = lax.optimization_barrier(acc)
        return acc, peak, total, p.astype(self.q.dtype), needed, factor

    def alone(self, now: Any, acc: Array, peak: Array, total: Array) -> tuple[Array, ...]:
        """Computes a tile of keys after one that was left out."""
        plgpu.barrier_wait(self.refs.v_full.at[self.group.v_slot(now - 1)])  # it is loaded
        p, peak, total, factor, needed = self.further(self.scores(now), now, peak, total)
        return acc, peak, total, p.astype(self.q.dtype), needed, factor
