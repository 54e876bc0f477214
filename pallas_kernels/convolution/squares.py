"""Squares of 8 x 8 cells in registers of a warpgroup: products, and ways to shared memory."""

import itertools
from typing import Any

import jax.numpy as jnp
import jaxlib.mlir.dialects as dialects
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import mma_utils
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm  # noqa: F401

from pallas_kernels.attention.mosaic_gpu.intrinsics import ROW, TILE, plgpu
from pallas_kernels.convolution.tiles import SIDE, TAPS

mlir: Any = dialects


def products(sums: Any, cells: Any, taps: Any, column: int) -> Any:
    """Adds the products of rows of cells and the taps that see them, without waiting.

    Args:
        sums: f32[64, D] for each square of results.
        cells: [rows + 2, columns, K] in shared memory, swizzled.
        taps: [3, D, K], one below the other, the same.
        column: Of the taps.
    """
    (height, _, depth), count, features = cells.shape, len(sums), taps.shape[1]
    wide = count // ((height - 2) // SIDE)
    swizzle, transform = 2 * depth, plgpu.SwizzleTransform(2 * depth)
    out = plgpu.ShapeDtypeStruct(sums[0].shape, jnp.float32, layout=TILE)
    refs = (plgpu.RefType((transform,)),) * 2
    pitch = cells.shape[1] * swizzle

    @plgpu.inline_mgpu(arg_types=(*refs, (TILE,) * count), return_type=(out,) * count)
    def added(_, cells, taps, sums):
        i32, i64, f32 = (*map(ir.IntegerType.get_signless, (32, 64)), ir.F32Type.get())
        values = [_scalars(x, i32) for x in sums]
        mlir.nvvm.wgmma_fence_aligned()
        a, b = (
            mma_utils.encode_descriptor(
                x, leading_byte_offset=0, stride_byte_offset=stride, swizzle=swizzle
            )
            for x, stride in ((cells, pitch), (taps, SIDE * swizzle))
        )

        def at(descriptor: Any, offset: int) -> Any:
            return mlir.arith.addi(descriptor, mgpu.c(offset >> 4, i64)) if offset else descriptor

        for start in range(0, swizzle, 32):
            for square, tap in itertools.product(range(count), range(TAPS)):
                row, first = square // wide * SIDE + tap, square % wide * SIDE + column
                source = at(a, row * pitch + first * swizzle + start)
                weights = at(b, tap * features * swizzle + start)
                values[square] = _wgmma(values[square], source, weights, features, f32)
        mlir.nvvm.wgmma_commit_group_sync_aligned()
        return tuple(_tile(x, like) for x, like in zip(values, sums, strict=True))

    return added(cells, taps, sums)


def swizzled(depth: int) -> tuple[Any, ...]:
    """Returns how rows of so many channels lie in shared memory."""
    return (plgpu.SwizzleTransform(2 * depth),)


def store_square(ref: Any, x: Any) -> None:
    """Stores bf16[64, K] in shared memory, [8, 8, K] and swizzled."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(swizzled(ref.shape[-1])), TILE))
    def store(_, ref, x):
        x.store_tiled(mgpu.memref_unsqueeze(ref, 1), 2 * ref.type.shape[-1])

    store(ref, x)


def load_square(ref: Any) -> Any:
    """Loads what `store_square` would have stored."""
    shape, transforms = (SIDE * SIDE, ref.shape[-1]), swizzled(ref.shape[-1])
    result = plgpu.ShapeDtypeStruct(shape, ref.dtype, layout=TILE)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(transforms),), return_type=result)
    def loaded(_, ref):
        ref = mgpu.memref_unsqueeze(ref, 1)
        return mgpu.FragmentedArray.load_tiled(ref, 2 * shape[1], layout=TILE.to_mgpu())

    return loaded(ref)


def store_remote(ref: Any, x: Any, member: Any) -> None:
    """Stores f32[64], one for each row of a tile, in the memory of another block of the cluster."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), ROW, plgpu.Layout.WG_SPLAT))
    def store(_, ref, x, member):
        i32 = ir.IntegerType.get_signless(32)
        number = mlir.arith.remui(mgpu_utils.thread_idx(), mgpu.c(128, i32))
        first = mlir.arith.addi(  # row of a thread: 16 for a warp, of which it has every eighth
            mlir.arith.muli(mlir.arith.divui(number, mgpu.c(32, i32)), mgpu.c(16, i32)),
            mlir.arith.divui(mlir.arith.remui(number, mgpu.c(32, i32)), mgpu.c(4, i32)),
        )
        start = mlir.llvm.ptrtoint(i32, mgpu_utils.memref_ptr(ref))
        for half, value in enumerate(x.registers.flat):
            row = mlir.arith.addi(first, mgpu.c(8 * half, i32))
            place = mlir.arith.addi(start, mlir.arith.muli(row, mgpu.c(4, i32)))
            if isinstance(value.type, ir.VectorType):
                value = mlir.llvm.extractelement(value, mgpu.c(0, i32))
            mlir.llvm.inline_asm(
                ir.Type.parse("!llvm.void"),
                [place, member.registers[()], value],
                "{ .reg .b32 there; mapa.shared::cluster.u32 there, $0, $1;"
                " st.shared::cluster.f32 [there], $2; }",
                "r,r,f",
                has_side_effects=True,
            )

    store(ref, x, member)


@plgpu.inline_mgpu()
def fence_cluster(_: Any) -> None:
    """Orders what a warpgroup does to shared memory of a cluster, before and after a barrier."""
    mlir.llvm.inline_asm(
        ir.Type.parse("!llvm.void"),
        [],
        "fence.acq_rel.cluster;",
        "~{memory}",
        has_side_effects=True,
    )
    mgpu.warpgroup_barrier()


def _scalars(x: Any, i32: Any) -> list[Any]:
    pairs = x.registers.flat
    return [mlir.llvm.extractelement(pair, mgpu.c(i, i32)) for pair in pairs for i in range(2)]


def _tile(values: list[Any], like: Any) -> Any:
    registers, i32 = np.empty_like(like.registers), ir.IntegerType.get_signless(32)
    for index in range(len(values) // 2):
        pair = mlir.llvm.mlir_undef(like.registers.flat[0].type)
        for i in range(2):
            pair = mlir.llvm.insertelement(pair, values[2 * index + i], mgpu.c(i, i32))
        registers.flat[index] = pair
    return mgpu.FragmentedArray(_registers=registers, _layout=like.layout, _is_signed=None)


def _wgmma(held: list[Any], a: Any, b: Any, columns: int, f32: Any) -> list[Any]:
    count = columns // 2
    numbers = ", ".join(f"${i}" for i in range(count))
    text = (
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{numbers}}}, "
        f"${2 * count}, ${2 * count + 1}, 1, 1, 1, 0, 0;"
    )
    constraints = ["=f"] * count + [str(i) for i in range(count)] + ["l", "l"]
    struct = mlir.llvm.inline_asm(
        mlir.llvm.StructType.get_literal([f32] * count),
        [*held, a, b],
        text,
        ",".join(constraints),
        has_side_effects=True,
    )
    return [mlir.llvm.extractvalue(f32, struct, [i]) for i in range(count)]
