"""Norms of rows in one pass over memory, forward and backward: what the kernels do, by Triton.

A program goes once through the rows of one group, a tile at a time, and has in registers the sums
of what every row adds to the gradients of the vectors of its group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from pallas_kernels.norms import EPSILON, Rows

Arrays = dict[str, Any]
"""Arrays of a kernel by name, or references to them inside."""


class Launch(NamedTuple):
    """How a kernel is run."""

    grid: tuple[int, ...]
    warps: int
    stages: int
    interpret: bool


def call(
    body: Callable[[Arrays, Arrays], None], given: Arrays, outs: Arrays, how: Launch
) -> Arrays:
    """Runs `body(ins, outs)` in every program; returns what it wrote, by name.

    Args:
        body: Reads and writes references; its name is that of the kernel.
        given: Arrays; those that are None are left out.
        outs: Shapes of the results.
        how: Programs and their warps.
    """
    given = {name: array for name, array in given.items() if array is not None}

    def kernel(*refs: Any) -> None:
        body(dict(zip(given, refs, strict=False)), dict(zip(outs, refs[len(given) :], strict=True)))

    made = pl.pallas_call(
        kernel,
        out_shape=list(outs.values()),
        grid=how.grid,
        interpret=how.interpret,
        compiler_params=triton.CompilerParams(num_warps=how.warps, num_stages=how.stages),
        name=body.__name__,
    )(*given.values())
    return dict(zip(outs, made, strict=True))


def norm_forward(
    x: Float[Array, "N D"] | None,
    y: Float[Array, "N D"],
    gate: Float[Array, "G D"] | None,
    factor: Float[Array, "g D"],
    shift: Float[Array, "g D"] | None,
    rows: Rows,
) -> tuple[Float[Array, "N D"], Float[Array, "M D"]]:
    """Returns the sum `x + gate y`, and its norm times `factor` plus `shift`."""

    def residual_norm_forward(ins: Arrays, outs: Arrays) -> None:
        program = pl.program_id(0)
        long = (rows.frames + rows.ahead) * rows.parts
        video, place = program // long, program % long
        place = jnp.maximum(place - rows.ahead * rows.parts, place % rows.parts)
        group = video * rows.frames * rows.parts + place
        factor, shift, gate = (_vector(ins, name, group) for name in ("factor", "shift", "gate"))

        def step(count: Array, carry: Array) -> Array:
            at = pl.ds(group * rows.size + count * rows.tile, rows.tile)
            s = ins["y"][at, :].astype(jnp.float32)
            s = s if gate is None else s * gate
            s = s + ins["x"][at, :].astype(jnp.float32) if "x" in ins else s
            s = s.astype(y.dtype)
            if "s" in outs:
                outs["s"][at, :] = s
            z, _ = normal(s.astype(jnp.float32))
            z = z * factor if shift is None else z * factor + shift
            z = z * _sigmoid(z) if rows.silu else z
            at = pl.ds(program * rows.size + count * rows.tile, rows.tile)
            outs["h"][at, :] = z.astype(y.dtype)
            return carry

        jax.lax.fori_loop(0, rows.size // rows.tile, step, 0)

    given = {"x": x, "y": y, "gate": gate, "factor": factor, "shift": shift}
    outs: Arrays = {"h": jax.ShapeDtypeStruct((rows.written * rows.size, y.shape[1]), y.dtype)}
    if x is not None or gate is not None:
        outs = {"s": jax.ShapeDtypeStruct(y.shape, y.dtype), **outs}
    made = call(residual_norm_forward, given, outs, Launch((rows.written,), 8, 2, rows.interpret))
    return made.get("s", y), made["h"]


def norm_backward(given: Arrays, wanted: tuple[str, ...], rows: Rows) -> Arrays:
    """Returns gradients by name: `d_x` of the sum, `d_y`, `d_gate`, `d_factor`, `d_shift`.

    Args:
        given: The sum `s`, what comes back for it, `d_s`, or None, and for the norm, `d_h`; `y`,
            `gate`, `factor` and `shift` as they were.
        wanted: Which gradients of vectors; those of every group are by themselves.
        rows: How they lie.
    """
    gated, like = "d_gate" in wanted, given["s"]

    def residual_norm_backward(ins: Arrays, outs: Arrays) -> None:
        group = pl.program_id(0)
        parts, frames = rows.parts, rows.frames
        video, place = group // (frames * parts), group % (frames * parts)
        written = video * (frames + rows.ahead) * parts + place + rows.ahead * parts
        factor, shift, gate = (_vector(ins, name, group) for name in ("factor", "shift", "gate"))

        def step(count: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            row = count * rows.tile
            at = pl.ds(group * rows.size + row, rows.tile)
            s = ins["s"][at, :].astype(jnp.float32)
            d = ins["d_h"][pl.ds(written * rows.size + row, rows.tile), :].astype(jnp.float32)
            if rows.ahead:  # copies of the first frame; others read what they have, times 0
                first = jnp.clip(parts - place, 0, 1).astype(jnp.float32)
                for back in range(1, rows.ahead + 1):
                    there = jnp.where(place < parts, written - back * parts, written)
                    more = ins["d_h"][pl.ds(there * rows.size + row, rows.tile), :]
                    d = d + first * more.astype(jnp.float32)
            unit, inverse = normal(s)
            if rows.silu:
                z = unit * factor if shift is None else unit * factor + shift
                sigmoid = _sigmoid(z)
                d = d * sigmoid * (1.0 + z * (1.0 - sigmoid))
            d_s = normal_backward(d * factor, unit, inverse)
            d_s = d_s + ins["d_s"][at, :].astype(jnp.float32) if "d_s" in ins else d_s
            outs["d_x"][at, :] = d_s.astype(like.dtype)
            terms = {"d_factor": d * unit, "d_shift": d}
            if gated:
                outs["d_y"][at, :] = (d_s * gate).astype(like.dtype)
                terms["d_gate"] = d_s * ins["y"][at, :].astype(jnp.float32)
            return tuple(total + terms[name] for total, name in zip(sums, wanted, strict=True))

        zeros = jnp.zeros((rows.tile, like.shape[1]), jnp.float32)
        sums = jax.lax.fori_loop(0, rows.size // rows.tile, step, (zeros,) * len(wanted))
        for name, total in zip(wanted, sums, strict=True):
            outs[name][pl.ds(group, 1), :] = jnp.sum(total, 0, keepdims=True)

    array = jax.ShapeDtypeStruct(like.shape, like.dtype)
    sums = jax.ShapeDtypeStruct((rows.groups, like.shape[1]), jnp.float32)
    outs = {"d_x": array, **({"d_y": array} if gated else {}), **dict.fromkeys(wanted, sums)}
    return call(residual_norm_backward, given, outs, Launch((rows.groups,), 8, 2, rows.interpret))


def gate_backward(
    d: Float[Array, "N D"], y: Float[Array, "N D"], gate: Float[Array, "G D"], rows: Rows
) -> tuple[Float[Array, "N D"], Float[Array, "G D"]]:
    """Returns `gate d`, and the sums of `d y` over every group."""

    def gate_gradients(ins: Arrays, outs: Arrays) -> None:
        group = pl.program_id(0)
        gates = _vector(ins, "gate", group)

        def step(count: Array, total: Array) -> Array:
            at = pl.ds(group * rows.size + count * rows.tile, rows.tile)
            d = ins["d"][at, :].astype(jnp.float32)
            outs["d_y"][at, :] = (d * gates).astype(y.dtype)
            return total + d * ins["y"][at, :].astype(jnp.float32)

        zeros = jnp.zeros((rows.tile, y.shape[1]), jnp.float32)
        total = jax.lax.fori_loop(0, rows.size // rows.tile, step, zeros)
        outs["d_gate"][pl.ds(group, 1), :] = jnp.sum(total, 0, keepdims=True)

    sums = jax.ShapeDtypeStruct(gate.shape, jnp.float32)
    outs = {"d_y": jax.ShapeDtypeStruct(y.shape, y.dtype), "d_gate": sums}
    given = {"d": d, "y": y, "gate": gate}
    made = call(gate_gradients, given, outs, Launch((rows.groups,), 8, 2, rows.interpret))
    return made["d_y"], made["d_gate"]


def head_forward(
    x: Float[Array, "T N 2 half"],
    gain: Float[Array, "2 half"],
    table: tuple[Array, Array] | None,
    rows: Rows,
) -> Float[Array, "T N 2 half"]:
    """Returns heads normalised, times `gain`, turned by the angles of `table`."""

    def head_norm_forward(ins: Arrays, outs: Arrays) -> None:
        at = pl.ds(pl.program_id(0) * rows.tile, rows.tile)
        low, high, _ = _head_normal(*_halves(ins["x"], at))
        first, second = _gains(ins["gain"])
        low, high = low * first, high * second
        if table is not None:
            cosine, sine = _angles(ins, rows)
            low, high = low * cosine - high * sine, high * cosine + low * sine
        outs["out"][at, :, 0, :] = low.astype(x.dtype)
        outs["out"][at, :, 1, :] = high.astype(x.dtype)

    cosine, sine = table or (None, None)
    given = {"x": x, "gain": gain, "cosine": cosine, "sine": sine}
    outs = {"out": jax.ShapeDtypeStruct(x.shape, x.dtype)}
    how = Launch((x.shape[0] // rows.tile,), 4, 1, rows.interpret)
    return call(head_norm_forward, given, outs, how)["out"]


def head_backward(
    x: Float[Array, "T N 2 half"],
    gain: Float[Array, "2 half"],
    table: tuple[Array, Array] | None,
    d_out: Float[Array, "T N 2 half"],
    rows: Rows,
) -> tuple[Float[Array, "T N 2 half"], Float[Array, "2 half"]]:
    """Returns the gradients of heads and gain."""

    def head_norm_backward(ins: Arrays, outs: Arrays) -> None:
        program = pl.program_id(0)
        at = pl.ds(program * rows.tile, rows.tile)
        low, high, inverse = _head_normal(*_halves(ins["x"], at))
        d_low, d_high = _halves(ins["d_out"], at)
        if table is not None:
            cosine, sine = _angles(ins, rows)
            d_low, d_high = d_low * cosine + d_high * sine, d_high * cosine - d_low * sine
        for place, total in enumerate((d_low * low, d_high * high)):
            outs["d_gain"][program, place, :] = jnp.sum(jnp.sum(total, 1), 0)
        first, second = _gains(ins["gain"])
        d_low, d_high = d_low * first, d_high * second
        along = jnp.sum(d_low * low + d_high * high, 2, keepdims=True) / (2 * low.shape[2])
        outs["d_x"][at, :, 0, :] = (inverse * (d_low - low * along)).astype(x.dtype)
        outs["d_x"][at, :, 1, :] = (inverse * (d_high - high * along)).astype(x.dtype)

    cosine, sine = table or (None, None)
    given = {"x": x, "d_out": d_out, "gain": gain, "cosine": cosine, "sine": sine}
    programs = x.shape[0] // rows.tile
    sums = jax.ShapeDtypeStruct((programs, *gain.shape), jnp.float32)
    outs = {"d_x": jax.ShapeDtypeStruct(x.shape, x.dtype), "d_gain": sums}
    made = call(head_norm_backward, given, outs, Launch((programs,), 4, 1, rows.interpret))
    return made["d_x"], jnp.sum(made["d_gain"], 0).astype(gain.dtype)


def _vector(ins: Arrays, name: str, group: Array) -> Any:
    """Returns the vector of a group, or that of all groups; None if there is none."""
    if name not in ins:
        return None
    ref = ins[name]
    return ref[pl.ds(group if ref.shape[0] > 1 else 0, 1), :].astype(jnp.float32)


def normal(s: Float[Array, "T D"]) -> tuple[Float[Array, "T D"], Float[Array, "T 1"]]:
    """Returns rows by their root mean squares, and one by those."""
    inverse = jax.lax.rsqrt(jnp.sum(s * s, 1, keepdims=True) / s.shape[1] + EPSILON)
    return s * inverse, inverse


def normal_backward(d: Array, unit: Array, inverse: Array) -> Float[Array, "T D"]:
    """Returns the gradient of rows, of what comes back for `unit` and of what `normal` made."""
    along = jnp.sum(d * unit, 1, keepdims=True) / d.shape[1]
    return inverse * (d - unit * along)


def _sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + jnp.exp(-z))


def _halves(ref: Any, at: Any) -> tuple[Array, Array]:
    low, high = ref[at, :, 0, :], ref[at, :, 1, :]
    return low.astype(jnp.float32), high.astype(jnp.float32)


def _angles(ins: Arrays, rows: Rows) -> tuple[Array, Array]:
    """Returns cosines and sines of the tokens of this program; `rows.size` are in a video."""
    at = pl.ds((pl.program_id(0) * rows.tile) % rows.size, rows.tile)
    return ins["cosine"][at, :][:, None, :], ins["sine"][at, :][:, None, :]


def _head_normal(low: Array, high: Array) -> tuple[Array, Array, Array]:
    square = jnp.sum(low * low + high * high, 2, keepdims=True) / (2 * low.shape[2])
    inverse = jax.lax.rsqrt(square + EPSILON)
    return low * inverse, high * inverse, inverse


def _gains(ref: Any) -> tuple[Array, Array]:
    return ref[0, :][None, None, :], ref[1, :][None, None, :]
