"""What Pallas lacks of a Hopper GPU: named barriers, votes, stores in register order."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.mlir.dialects as dialects
import numpy as np
from jax import lax
from jax.experimental import pallas
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, nvvm, scf, vector  # noqa: F401
from jaxtyping import Array, Bool, Float

# Their annotations know neither references nor functions that are inlined.
pl: Any = pallas
plgpu: Any = mosaic_gpu
mlir: Any = dialects

FIRST_BARRIER = 4  # hardware barriers below are Mosaic's own: the block's and one per warpgroup
LOG2E = math.log2(math.e)
# Registers of a thread that computes, and of one that loads or stores, by the size of a head and,
# where three warpgroups compute, for heads of 64.
REGISTERS = {64: (232, 40), 128: (240, 24)}
REGISTERS_OF_THREE = (160, 32)
CHUNK = 32  # columns of a tile that are masked together
SWIZZLE = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)

TILE = plgpu.Layout.WGMMA
ROW = TILE.reduce(1)  # one value per row of a tile
COLUMN = TILE.reduce(0)  # one value per column of a tile


def launch(
    name: str,
    body: Any,
    out_type: Any,
    scratch: Any,
    grid: dict[str, int],
    computing: int = 2,
    cluster: Mapping[str, int] = MappingProxyType({}),
) -> Callable[..., Any]:
    """Returns a kernel of blocks of warpgroups, that is called with its operands.

    It is `plgpu.kernel` without batching: of which jax 0.10 loses that references are written.

    Args:
        name: Its name in profiles.
        body: Called with operands, outputs and scratch memory, in every warpgroup.
        out_type: Shapes of the outputs.
        scratch: Types of the scratch memory.
        grid: Names and numbers of blocks, or of clusters of them; the last run fastest.
        computing: Warpgroups of a block, besides the last, which loads.
        cluster: Names and numbers of the blocks of a cluster, which read each other's memory.
    """

    def with_scratch(*refs: Any) -> None:
        pl.run_scoped(functools.partial(body, *refs), *scratch, collective_axes="warpgroup")

    mesh = plgpu.Mesh(
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        cluster=tuple(cluster.values()),
        cluster_names=tuple(cluster),
        num_threads=computing + 1,
        thread_name="warpgroup",
    )
    parameters = plgpu.CompilerParams(
        approx_math=True,
        lowering_semantics=plgpu.LoweringSemantics.Lane,
        unsafe_no_auto_barriers=True,
        reduction_scratch_bytes=0,
    )
    return pl.kernel(
        with_scratch, out_type=out_type, mesh=mesh, compiler_params=parameters, name=name
    )


def divide(
    warpgroup: Any, computing: int, registers: tuple[int, int], compute: Any, load: Any
) -> None:
    """Calls `compute()` in the warpgroups that compute, `load(warp)` in the warps of the last.

    A thread of the first has more `registers` than one of the last.
    """

    @pl.when(warpgroup < computing)
    def _compute():
        plgpu.set_max_registers(registers[0], action="increase")
        compute()

    @pl.when(warpgroup == computing)
    def _load():
        plgpu.set_max_registers(registers[1], action="decrease")
        plgpu.warp_map(load)


def product(rows: Any, columns: Any) -> Float[Array, "R C"]:
    """Returns the products of all rows `[R, D]` and columns `[C, D]`, which is waited for."""

    def multiply(sums: Any) -> Array:
        plgpu.wgmma(sums, rows, columns.T)
        return sums[...]

    return pl.run_scoped(multiply, plgpu.ACC((rows.shape[0], columns.shape[0]), jnp.float32))


def slot_of(step: Any, stages: int) -> Any:
    """Returns the stage of a step, not negative."""
    return lax.rem(step, stages) if stages & (stages - 1) else step & (stages - 1)


def turns(first: Any, total: int, workers: int) -> Any:
    """Returns how many of `first`, `first + workers`, ... are below `total`."""
    left = lax.div(jnp.int32(total - 1) - first, jnp.int32(workers))
    return jnp.where(first < total, left + 1, 0)  # for div truncates


def take(counter: Any) -> Any:
    """Counts one up, i32[1] in the memory of the device, and returns what it was: for one warp."""
    result = plgpu.ShapeDtypeStruct((), jnp.int32, layout=plgpu.Layout.WG_SPLAT)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=result)
    def taken(_, counter):
        i32 = ir.IntegerType.get_signless(32)
        number = mlir.llvm.inline_asm(
            i32,
            [mgpu_utils.memref_ptr(counter)],
            "{ .reg .pred p; .reg .b32 lane, old; mov.b32 old, 0; mov.u32 lane, %laneid;"
            " setp.eq.u32 p, lane, 0; @p atom.global.add.u32 old, [$1], 1;"
            " shfl.sync.idx.b32 $0, old, 0, 31, 0xffffffff; }",
            "=r,l",
            has_side_effects=True,
        )
        return mgpu.FragmentedArray.splat(number, (), is_signed=True)

    return taken(counter)


def arrive(barrier: Any, threads: int) -> None:
    """Arrives at a hardware barrier of so many threads, without waiting."""
    _named_barrier("arrive", barrier, threads)


def sync(barrier: Any, threads: int) -> None:
    """Arrives at a hardware barrier and waits until all its threads have."""
    _named_barrier("sync", barrier, threads)


def _named_barrier(operation: str, barrier: Any, threads: int) -> None:
    def issue(operands: list[Any], name: str, constraints: str) -> None:
        mlir.llvm.inline_asm(
            ir.Type.parse("!llvm.void"),
            operands,
            f"bar.{operation} {name}, {threads};",
            constraints,
            has_side_effects=True,
        )

    if isinstance(barrier, int):

        @plgpu.inline_mgpu()
        def known(_):
            issue([], str(barrier), "")

        known()
        return

    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WG_SPLAT,))
    def chosen(_, barrier):
        issue([barrier.registers[()]], "$0", "r")

    chosen(barrier)


@plgpu.inline_mgpu()
def fence_shared(_: Any) -> None:
    """Makes ordinary stores to shared memory visible to tensor cores and copies."""
    mlir.nvvm.fence_proxy(mlir.nvvm.ProxyKind.async_shared, space=nvvm.SharedSpace.shared_cta)


def reaches(x: Float[Array, "64"], bounds: Float[Array, "64"], barrier: Any) -> Any:
    """Returns 1 if some row of a warpgroup reaches its bound, else 0; its warps wait for it."""
    result = plgpu.ShapeDtypeStruct((), jnp.int32, layout=plgpu.Layout.WG_SPLAT)

    @plgpu.inline_mgpu(arg_types=(ROW, ROW, plgpu.Layout.WG_SPLAT), return_type=result)
    def vote(_, x, bounds, barrier):
        i32, least = ir.IntegerType.get_signless(32), mlir.arith.CmpFPredicate.OGE
        found = [
            mlir.arith.cmpf(least, _scalar(one, i32), _scalar(two, i32))
            for one, two in zip(x.registers.flat, bounds.registers.flat, strict=True)
        ]
        some = mlir.arith.extui(i32, functools.reduce(mlir.arith.ori, found))
        number = mlir.llvm.inline_asm(
            i32,
            [some, barrier.registers[()]],
            "{ .reg .pred p, q; setp.ne.b32 p, $1, 0;"
            " bar.red.or.pred q, $2, 128, p; selp.b32 $0, 1, 0, q; }",
            "=r,r,r",
            has_side_effects=True,
        )
        return mgpu.FragmentedArray.splat(number, (), is_signed=True)

    return vote(x, bounds, jnp.int32(barrier))


def either(mine: Any, own: Any, other: Any, number: Any) -> Any:
    """Returns 1 if this warpgroup or another says 1, for which only one that says 0 waits.

    Args:
        mine: What this one says, 0 or 1.
        own: i32[1] in shared memory, where it says so.
        other: Where the other does.
        number: Of the question, which is asked once; not negative.
    """
    result = plgpu.ShapeDtypeStruct((), jnp.int32, layout=plgpu.Layout.WG_SPLAT)
    splat = plgpu.Layout.WG_SPLAT

    @plgpu.inline_mgpu(
        arg_types=(splat, plgpu.RefType(), plgpu.RefType(), splat), return_type=result
    )
    def told(_, mine, own, other, number):
        i32 = ir.IntegerType.get_signless(32)
        places = [mlir.llvm.ptrtoint(i32, mgpu_utils.memref_ptr(ref)) for ref in (own, other)]
        found = mlir.llvm.inline_asm(
            i32,
            [mine.registers[()], number.registers[()], *places],
            "{ .reg .pred p; .reg .b32 said, of; shl.b32 said, $2, 1; or.b32 said, said, $1;"
            " st.volatile.shared.b32 [$3], said; mov.b32 $0, $1; setp.ne.b32 p, $1, 0;"
            " @p bra KNOWN; UNKNOWN: ld.volatile.shared.b32 said, [$4]; shr.u32 of, said, 1;"
            " setp.ne.b32 p, of, $2; @p bra UNKNOWN; and.b32 $0, said, 1; KNOWN: }",
            "=&r,r,r,r,r",
            has_side_effects=True,
        )
        return mgpu.FragmentedArray.splat(found, (), is_signed=True)

    return told(mine, own, other, number)


def scale_rows(x: Float[Array, "R C"], factors: Float[Array, " R"]) -> Float[Array, "R C"]:
    """Multiplies rows of a tile; a warp whose factors are all 1 skips the multiplications."""
    result = plgpu.ShapeDtypeStruct(x.shape, x.dtype, layout=TILE)

    @plgpu.inline_mgpu(arg_types=(TILE, ROW), return_type=result)
    def scaled(_, x, factors):
        i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()
        one = mlir.arith.constant(f32, ir.FloatAttr.get(f32, 1.0))
        differ = [
            mlir.arith.cmpf(mlir.arith.CmpFPredicate.UNE, _scalar(r, i32), one)
            for r in factors.registers.flat
        ]
        any_differs = mlir.llvm.inline_asm(
            i32,
            [mlir.arith.extui(i32, functools.reduce(mlir.arith.ori, differ))],
            "{ .reg .pred p, q; setp.ne.b32 p, $1, 0; vote.sync.any.pred q, p, 0xffffffff;"
            " selp.b32 $0, 1, 0, q; }",
            "=r,r",
            has_side_effects=True,
        )
        registers = list(x.registers.flat)
        wanted = mlir.arith.cmpi(mlir.arith.CmpIPredicate.ne, any_differs, mgpu.c(0, i32))
        branch = mlir.scf.IfOp(wanted, [r.type for r in registers], has_else=True)
        with ir.InsertionPoint(branch.then_block):
            product = x * factors.broadcast_in_dim(x.shape, (0,), x.layout)
            mlir.scf.yield_(list(product.registers.flat))
        with ir.InsertionPoint(branch.else_block):
            mlir.scf.yield_(registers)
        out = np.empty_like(x.registers)
        out.flat[:] = list(branch.results)
        return mgpu.FragmentedArray(_registers=out, _layout=x.layout, _is_signed=None)

    return scaled(x, factors)


def _scalar(register: Any, i32: Any) -> Any:
    if isinstance(register.type, ir.VectorType):
        return mlir.llvm.extractelement(register, mgpu.c(0, i32))
    return register


def store_fragment(ref: Any, x: Float[Array, "64 64"]) -> None:
    """Stores a float32 tile in the order of its registers: no bank conflicts, one piece."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), TILE))
    def store(_, ref, x):
        pairs = list(x.registers.flat)
        fours = np.empty((len(pairs) // 2,), dtype=object)
        for i in range(len(fours)):
            fours[i] = mlir.vector.shuffle(pairs[2 * i], pairs[2 * i + 1], [0, 1, 2, 3])
        strided = fragmented_array.WGStridedFragLayout((16, 256), 4)
        mgpu.FragmentedArray(_registers=fours, _layout=strided, _is_signed=None).store_untiled(ref)

    store(ref, x)


def pin(ref: Any, x: Float[Array, "64 C"]) -> None:
    """Makes a tile be computed before what follows: compilers move no store over a wait.

    Args:
        ref: i32[..., n] in shared memory; the last is overwritten, and means nothing.
        x: The tile.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), TILE))
    def store(_, ref, x):
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        total = functools.reduce(mlir.arith.addf, x.registers.flat)
        total = mlir.arith.addf(*(mlir.llvm.extractelement(total, mgpu.c(i, i32)) for i in (0, 1)))
        last = [mgpu.c(size - 1, index) for size in ir.MemRefType(ref.type).shape]
        mlir.memref.store(mlir.arith.bitcast(i32, total), ref, last)

    store(ref, x)


def store_warp_sum(ref: Any, x: Float[Array, "64 C"]) -> None:
    """Stores the sum of what each of the four warps of a warpgroup holds of a tile."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), TILE))
    def store(_, ref, x):
        parts = list(x.registers.flat)
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [mlir.arith.addf(one, two) for one, two in pairs]
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        halves = [mlir.llvm.extractelement(parts[0], mgpu.c(i, i32)) for i in range(2)]
        total = mlir.arith.addf(*halves)
        for distance in (1, 2, 4, 8, 16):
            total = mlir.arith.addf(total, mgpu_utils.shfl_bfly(total, distance))
        warp = mlir.arith.remui(mgpu_utils.warp_idx(sync=False), mgpu.c(4, i32))
        mlir.memref.store(total, ref, [mlir.arith.index_castui(index, warp)])

    store(ref, x)


def widened(x: Float[Array, "64 c"], columns: int) -> Float[Array, "64 C"]:
    """Returns a tile with zeros on its right."""
    result = plgpu.ShapeDtypeStruct((64, columns), x.dtype, layout=TILE)

    @plgpu.inline_mgpu(arg_types=(TILE,), return_type=result)
    def wide(_, x):
        registers = np.empty(TILE.to_mgpu().registers_shape((64, columns)), dtype=object)
        known = list(x.registers.flat)
        zero = mlir.vector.broadcast(known[0].type, _number(0.0))
        registers.flat[:] = known + [zero] * (registers.size - len(known))
        return mgpu.FragmentedArray(_registers=registers, _layout=x.layout, _is_signed=None)

    return wide(x)


def cut_columns(
    x: Float[Array, "64 C"], limit: Any, value: float, known: int = 0
) -> Float[Array, "64 C"]:
    """Sets all but the first `limit` columns of a tile to a value, in chunks that have some.

    Args:
        x: The tile.
        limit: i32, how many columns stay.
        value: Of the others.
        known: Columns that are known to stay, a multiple of `CHUNK`.
    """
    result = plgpu.ShapeDtypeStruct(x.shape, x.dtype, layout=TILE)

    @plgpu.inline_mgpu(arg_types=(TILE, plgpu.Layout.WG_SPLAT), return_type=result)
    def cut(_, x, limit):
        i32, less = ir.IntegerType.get_signless(32), mlir.arith.CmpIPredicate.slt
        (limit,) = limit.registers.flat
        lane = mlir.arith.remui(mgpu_utils.thread_idx(), mgpu.c(4, i32))
        mine = mlir.arith.subi(limit, mlir.arith.muli(lane, mgpu.c(2, i32)))
        constant = _number(value)

        def where(size: int, registers: list[Any], make: Any) -> list[Any]:
            short = mlir.arith.cmpi(less, limit, mgpu.c(size, i32))
            branch = mlir.scf.IfOp(short, [r.type for r in registers], has_else=True)
            with ir.InsertionPoint(branch.then_block):
                mlir.scf.yield_(make(registers))
            with ir.InsertionPoint(branch.else_block):
                mlir.scf.yield_(registers)
            return list(branch.results)

        def cut_chunk(start: int, registers: list[Any]) -> list[Any]:
            found = []
            for at, register in enumerate(registers):  # of eight columns two rows, one by one
                halves = []
                for half in range(2):
                    column = mgpu.c(start + at // 2 * 8 + half, i32)
                    counts = mlir.arith.cmpi(less, column, mine)
                    number = mlir.llvm.extractelement(register, mgpu.c(half, i32))
                    halves.append(mlir.arith.select(counts, number, constant))
                found.append(mlir.vector.from_elements(register.type, halves))
            return found

        def cut_all(registers: list[Any]) -> list[Any]:
            found = registers[: known // 4]
            for start in range(known, x.shape[1], CHUNK):
                chunk = registers[start // 4 : (start + CHUNK) // 4]
                found += where(start + CHUNK, chunk, functools.partial(cut_chunk, start))
            return found

        out = np.empty_like(x.registers)
        out.flat[:] = where(x.shape[1], list(x.registers.flat), cut_all)
        return mgpu.FragmentedArray(_registers=out, _layout=x.layout, _is_signed=None)

    return cut(x, limit)


def _number(value: float) -> Any:
    f32 = ir.F32Type.get()
    return mlir.arith.constant(f32, ir.FloatAttr.get(f32, value))


def words_of(words: Any, place: tuple[Any, Any, Any], kind: Any, index: Any) -> Any:
    """Returns the words of a tile, i32[32], whose cells are listed in full or in part.

    Args:
        words: Of all tiles, as `Cells.words` returns them; one batch row or head serves all.
        place: Batch row, head and tile of the rows.
        kind: 0 for cells in full, 1 for those in part.
        index: Of the tile of the columns.
    """
    row = (at if size > 1 else 0 for at, size in zip(place, words.shape[:2], strict=False))
    return words.at[*row, place[2], kind * (words.shape[3] // 2) + index]


def listed_cells(words: Any, columns: int, width: int) -> Bool[Array, "64 C"]:
    """Returns which pairs of a tile lie in listed cells.

    Args:
        words: i32[16] in shared memory: for every 4 rows of a warpgroup a word, of which bit `i`
            says whether its `i`-th cell of the columns is listed.
        columns: Of the tile.
        width: Columns of a cell, 4 or more.
    """
    result = plgpu.ShapeDtypeStruct((64, columns), jnp.bool_, layout=TILE)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=result)
    def listed(_, words):
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        pair, flag = ir.VectorType.get((2,), ir.IntegerType.get_signless(1)), mgpu.c(0, i32)
        number = mlir.arith.remui(mgpu_utils.thread_idx(), mgpu.c(128, i32))
        first = mlir.arith.addi(  # row of a thread: 16 for a warp, of which it has every eighth
            mlir.arith.muli(mlir.arith.divui(number, mgpu.c(32, i32)), mgpu.c(16, i32)),
            mlir.arith.divui(mlir.arith.remui(number, mgpu.c(32, i32)), mgpu.c(4, i32)),
        )
        # Of eight columns a thread has two beside each other, those of its number.
        shift = mlir.arith.divui(
            mlir.arith.muli(mlir.arith.remui(number, mgpu.c(4, i32)), mgpu.c(2, i32)),
            mgpu.c(width, i32),
        )
        found = []
        for half in range(2):
            row = mlir.arith.addi(first, mgpu.c(8 * half, i32))
            place = mlir.arith.divui(row, mgpu.c(4, i32))
            word = mlir.memref.load(words, [mlir.arith.index_castui(index, place)])
            word = mlir.arith.shrui(word, shift) if width < 8 else word
            found.append([])
            for column in range(0, columns, 8):
                bit = mlir.arith.andi(word, mgpu.c(1 << (column // width), i32))
                bit = mlir.arith.cmpi(mlir.arith.CmpIPredicate.ne, bit, flag)
                found[-1].append(mlir.vector.broadcast(pair, bit))
        layout = TILE.to_mgpu()
        registers = np.empty(layout.registers_shape((64, columns)), dtype=object)
        registers.flat[:] = [x for both in zip(*found, strict=True) for x in both]
        return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=False)

    return listed(words)


def from_fragments(x: Float[Array, "B N T C 16 256"]) -> Float[Array, "B L N D"]:
    """Puts tiles that `store_fragment` wrote, `T` of rows by `C` of columns, into order.

    A fragment is `[column / 8, warp, lane / 4, lane % 4, row half, column % 2]`.
    """
    batch, heads, tiles, parts = x.shape[:4]
    x = x.reshape(batch, heads, tiles, parts, 8, 4, 8, 4, 2, 2)
    x = x.transpose(0, 2, 5, 8, 6, 1, 3, 4, 7, 9)
    return x.reshape(batch, tiles * 64, heads, parts * 64)


def load(ref: Any, **options: Any) -> Array:
    """Loads a whole reference in a layout."""
    return plgpu.load(ref, (), **options) if _INDEXED else plgpu.load(ref, **options)


# jax 0.10 wants an index, jax 0.12 takes none.
_INDEXED = jax.__version_info__ < (0, 11)
