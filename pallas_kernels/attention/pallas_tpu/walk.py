"""How a kernel goes through the lists: one program per tile of queries, one step per few pieces.

Keys and values lie in vector memory for a whole head, or are fetched for each step, while the step
before computes. What is said of queries and keys holds for keys and queries too, where the lists
are those of the transposed mask.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.attention.pallas_tpu.lists import ABSENT, Lists, shift
from pallas_kernels.attention.pallas_tpu.tiles import LANES, Tiles

MASKED = -1e30  # a score; finite, so that a row of masked scores is no NaN
_SLOTS = 2  # steps whose keys and values are in vector memory


class Operands(NamedTuple):
    """The arrays of a kernel. Leading axes are batch times heads, or what divides it.

    Attributes:
        tiled: `[X, L, D]`, of which a program has the rows of its tile.
        numbers: f32[X, tiles, 1, q], of which it has those of its tile.
        gathered: `[X, K, D]`, of which a step has the rows of its pieces.
        tables: f32[X, pieces, kv], of which a step has the numbers of its pieces.
    """

    tiled: Sequence[Array]
    numbers: Sequence[Array]
    gathered: Sequence[Array]
    tables: Sequence[Array]


class Options(NamedTuple):
    """How the kernels run."""

    tiles: Tiles
    memory: int | None  # bytes of vector memory; None is what the compiler allows by itself
    interpret: Any


class Part(NamedTuple):
    """What a part of a step has."""

    gathered: list[Array]  # [keys, D]
    tables: list[Array]  # [1, keys]
    mask: Callable[[Array], Array]  # masks scores [q, keys]


class Tile(NamedTuple):
    """What one program has; references, and a way through the steps."""

    tiled: list[Any]  # [q, D]
    numbers: list[Any]  # [1, q]
    outs: list[Any]
    scratch: list[Any]
    walk: Callable[[Callable[[list[Part]], None]], None]  # calls its argument with each step


def over_tiles(
    body: Callable[[Tile], None],
    name: str,
    lists: Lists,
    operands: Operands,
    outs: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[tuple[int, ...]],
    options: Options,
    products: int,
) -> Any:
    """Runs a kernel for every tile of every head.

    Args:
        body: Computes one tile.
        name: Of the kernel, in profiles.
        lists: What is attended to.
        operands: The arrays.
        outs: `[heads, L, D]` for the first, which is tiled; others are, or `[heads, tiles, 1, q]`.
        scratch: Shapes of float32 memory for a tile.
        options: How it runs.
        products: Matrix products of a step.
    """
    tiles = options.tiles
    heads, length, _ = outs[0].shape
    blocks = _Blocks(tiles, heads)
    places = [] if lists.q_places is None else [lists.q_places]
    tiled = [*operands.tiled, *operands.numbers, *places]
    whole = [lists.kv_places, *operands.tables]
    memory = [pltpu.VMEM(shape, jnp.float32) for shape in scratch]
    if not tiles.resident:
        slots = ((_SLOTS, tiles.keys * tiles.parts, x.shape[2]) for x in operands.gathered)
        memory += [
            *(pltpu.VMEM(x, operands.gathered[0].dtype) for x in slots),
            pltpu.SemaphoreType.DMA((len(operands.gathered), _SLOTS)),
        ]
    return pl.pallas_call(
        functools.partial(_program, body, lists, operands, len(outs), len(scratch), tiles),
        grid=(heads, length // tiles.q),
        in_specs=[
            blocks.lists(lists),
            *(blocks.tiled(x) for x in tiled),
            *(blocks.whole(x) for x in whole),
            *(blocks.gathered(x) for x in operands.gathered),
        ],
        out_specs=[blocks.tiled(x) for x in outs],
        out_shape=list(outs),
        scratch_shapes=memory,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=options.memory
        ),
        cost_estimate=_cost(outs[0], lists, tiles, products),
        interpret=options.interpret,
        name=name,
    )(lists.rows, *tiled, *whole, *operands.gathered)


class _Blocks:
    """Which part of each array a program has."""

    def __init__(self, tiles: Tiles, heads: int):
        self.tiles, self.heads = tiles, heads

    def lists(self, lists: Lists) -> pl.BlockSpec:
        """Returns the list of a tile, in scalar memory."""
        shared = lists.per_head and lists.rows.shape[0] < self.heads  # by all batch rows

        def index(h: Any, i: Any) -> tuple[Any, ...]:
            head = lax.rem(h, lists.rows.shape[0]) if shared else _lead(self.heads, lists.rows, h)
            return head, lax.div(i, self.tiles.q_split), 0, 0

        shape = (None, None, *lists.rows.shape[2:])
        return pl.BlockSpec(shape, index, memory_space=pltpu.SMEM)

    def tiled(self, x: Any) -> pl.BlockSpec:
        """Returns the rows of a tile, or its numbers."""
        if len(x.shape) == 4:
            shape = (None, None, *x.shape[2:])
            return pl.BlockSpec(shape, lambda h, i: (_lead(self.heads, x, h), i, 0, 0))
        shape = (None, self.tiles.q, x.shape[2])
        return pl.BlockSpec(shape, lambda h, i: (_lead(self.heads, x, h), i, 0))

    def whole(self, x: Any, mode: Any = None) -> pl.BlockSpec:
        """Returns all of a head."""

        def index(h: Any, i: Any) -> tuple[Any, ...]:
            return _lead(self.heads, x, h), 0, 0

        return pl.BlockSpec((None, *x.shape[1:]), index, pipeline_mode=mode)

    def gathered(self, x: Any) -> pl.BlockSpec:
        """Returns all of a head, once, or an array in main memory."""
        if self.tiles.resident:
            return self.whole(x, pl.Buffered(1))
        return pl.BlockSpec(memory_space=pl.ANY)


def _cost(out: Any, lists: Lists, tiles: Tiles, products: int) -> pl.CostEstimate:
    """Returns the work of a kernel whose lists are all full."""
    heads, length, size = out.shape
    pairs = heads * length * (lists.rows.shape[3] - 1) * tiles.kv
    moved = pairs // tiles.q * size * out.dtype.itemsize * 2
    return pl.CostEstimate(
        flops=2 * products * pairs * size, bytes_accessed=moved, transcendentals=pairs
    )


def _lead(heads: Any, x: Any, head: Any) -> Any:
    """Returns which leading index serves a head of the batch."""
    return lax.div(head, heads // x.shape[0]) if x.shape[0] > 1 else 0


def _program(
    body: Callable[[Tile], None],
    lists: Lists,
    operands: Operands,
    outs: int,
    scratch: int,
    tiles: Tiles,
    *refs: Any,
) -> None:
    """Computes one tile: gives names to references."""
    left = list(refs)

    def take(count: int) -> list[Any]:
        taken, left[:] = left[:count], left[count:]
        return taken

    (row,) = take(1)
    tiled, numbers = take(len(operands.tiled)), take(len(operands.numbers))
    q_places = take(lists.q_places is not None)
    (kv_places,) = take(1)
    tables, gathered = take(len(operands.tables)), take(len(operands.gathered))
    walk = functools.partial(_walk, tiles, row, gathered, tables, kv_places, q_places)
    out_refs, memory = take(outs), take(scratch)
    body(Tile(tiled, numbers, out_refs, memory, functools.partial(walk, left)))


def _walk(
    tiles: Tiles,
    row: Any,
    gathered: list[Any],
    tables: list[Any],
    kv_places: Any,
    q_places: list[Any],
    buffers: list[Any],
    body: Callable[[list[Part]], None],
) -> None:
    """Calls `body` with each step of a list; twice in the program, once with masks."""
    steps = row[0, 0]
    fetch = _Resident(tiles, gathered) if tiles.resident else _Fetched(tiles, gathered, *buffers)

    def entries(step: Any) -> list[Any]:
        first = 1 + step * tiles.pieces
        return [row[0, first + u] for u in range(tiles.pieces)]

    @pl.when(steps > 0)
    def _():
        fetch.start(entries(0), 0)

    @pl.loop(0, steps)
    def _(step: Any) -> None:
        now = entries(step)

        @pl.when(step + 1 < steps)
        def _():
            fetch.start(entries(step + 1), step + 1)

        fetch.finish(now, step)
        kinds = functools.reduce(lax.bitwise_or, now) & 3
        parts = [now[i : i + tiles.gather] for i in range(0, len(now), tiles.gather)]

        def joined(masks: list[Callable[[Array], Array]]) -> list[Part]:
            return [
                Part(
                    fetch.read(pieces, part, step),
                    [_numbers(table, pieces) for table in tables],
                    masks[part],
                )
                for part, pieces in enumerate(parts)
            ]

        @pl.when(kinds == 0)
        def _():
            body(joined([lambda scores: scores] * len(parts)))

        @pl.when(kinds != 0)
        def _():
            of_queries = column(q_places[0])[:, :1] if q_places else jnp.int32(0)

            def mask(scores: Array, pieces: list[Any]) -> Array:
                of_keys = _numbers(kv_places, pieces, lambda entry: shift(entry & ABSENT))
                return jnp.where(of_keys <= of_queries, scores, MASKED)

            body(joined([functools.partial(mask, pieces=pieces) for pieces in parts]))


def column(row: Any) -> Array:
    """Turns a row of numbers `[1, q]` into a column that fills 128 lanes."""
    return jnp.broadcast_to(row[...], (LANES, row.shape[1])).T


def _numbers(table: Any, entries: list[Any], added: Callable[[Any], Any] | None = None) -> Array:
    """Returns the numbers of pieces as one row."""
    rows = [table[pl.ds(lax.shift_right_logical(e, 2), 1), :] for e in entries]
    if added is not None:
        rows = [row + added(e) for row, e in zip(rows, entries, strict=True)]
    return jnp.concatenate(rows, 1)


class _Resident:
    """All keys and values of a head are in vector memory."""

    def __init__(self, tiles: Tiles, sources: list[Any]):
        self.tiles, self.sources = tiles, sources

    def start(self, entries: list[Any], step: Any) -> None:
        """Does nothing: the pieces are here."""

    def finish(self, entries: list[Any], step: Any) -> None:
        """Waits for nothing."""

    def read(self, entries: list[Any], part: int, step: Any) -> list[Array]:
        """Joins pieces."""
        return [
            jnp.concatenate([source[_rows(self.tiles, e), :] for e in entries], 0)
            for source in self.sources
        ]


class _Fetched:
    """Pieces are copied from main memory, a step ahead."""

    def __init__(self, tiles: Tiles, sources: list[Any], *buffers: Any):
        self.tiles, self.sources = tiles, sources
        *self.buffers, self.semaphores = buffers
        self.head = pl.program_id(0)

    def _copies(self, entries: list[Any], step: Any) -> list[Any]:
        slot, size = lax.rem(step, _SLOTS), self.tiles.kv
        heads = pl.num_programs(0)
        return [
            pltpu.make_async_copy(
                source.at[_lead(heads, source, self.head), _rows(self.tiles, entry)],
                buffer.at[slot, pl.ds(u * size, size)],
                self.semaphores.at[n, slot],
            )
            for n, (source, buffer) in enumerate(zip(self.sources, self.buffers, strict=True))
            for u, entry in enumerate(entries)
        ]

    def start(self, entries: list[Any], step: Any) -> None:
        """Starts to copy the pieces of a step."""
        for copy in self._copies(entries, step):
            copy.start()

    def finish(self, entries: list[Any], step: Any) -> None:
        """Waits for the pieces of a step."""
        for copy in self._copies(entries, step):
            copy.wait()

    def read(self, entries: list[Any], part: int, step: Any) -> list[Array]:
        """Returns the pieces of a part of a step."""
        size = self.tiles.keys
        return [buffer[lax.rem(step, _SLOTS), pl.ds(part * size, size)] for buffer in self.buffers]


def _rows(tiles: Tiles, entry: Any) -> Any:
    """Returns the rows of a piece."""
    start = lax.shift_right_logical(entry, 2) * tiles.kv
    return pl.ds(pl.multiple_of(start, tiles.kv), tiles.kv)
