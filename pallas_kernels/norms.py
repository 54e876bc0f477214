"""Norms with what stands around them in a network, in one pass over memory each way.

What XLA makes of a norm and its gradient reads its input twice, and writes values in float32 in
between: a tenth of a training step of `tiny_t2v`, a fifth of one of its autoencoder (H200).
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.kernel import KernelUnavailable
from pallas_kernels.attention.planned import refusal_of_triton

EPSILON = 1e-6
"""Added to the mean square."""
TILE = 4096
"""Numbers of an array that a program has in registers."""
HEAD_TOKENS = 8
"""Tokens of a program that normalises heads."""
PROGRAMS = 512
"""Groups below which a GPU is not filled, and XLA is as fast: it splits rows too."""

Implementation = Literal["xla", "triton", "interpret"] | None
"""`triton` is for H100 and H200, `interpret` runs its programs on any device, slowly, and `xla` is
what they compute; None is `triton` where it serves the call, else `xla`."""


class Rows(NamedTuple):
    """How programs go through rows: `groups` of `size` rows, `tile` rows at once.

    Of a video `frames` lie one after the other, each of `parts` groups; what comes out begins
    with its first frame `ahead` times more.
    """

    groups: int
    size: int
    tile: int
    interpret: bool = False
    frames: int = 1
    parts: int = 1
    ahead: int = 0
    silu: bool = False

    @property
    def written(self) -> int:
        """Groups that come out."""
        return self.groups // self.frames * (self.frames + self.ahead)


def residual_norm(
    y: Float[Array, "B F P D"],
    factor: Float[Array, "b f D"],
    shift: Float[Array, "b f D"] | None = None,
    residual: Float[Array, "B F P D"] | None = None,
    gate: Float[Array, "B F D"] | None = None,
    implementation: Implementation = None,
) -> tuple[Float[Array, "B F P D"], Float[Array, "B F P D"]]:
    """Returns `s = residual + gate y`, and `s / rms(s) factor + shift`; what is None is left out.

    Where `s` is read again, what comes back for it is added to the gradient in the same pass.

    Args:
        y: Tokens of every frame.
        factor: What the normalised tokens of each frame are multiplied with, or all, `[1, 1, D]`.
        shift: What is added; of as many frames as `factor`.
        residual: What `y` is added to.
        gate: What tokens of each frame are multiplied with before that.
        implementation: Which program.

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    videos, frames, tokens, width = y.shape
    rows = Rows(videos * frames, tokens, _tile(tokens, width), implementation == "interpret")
    if by_xla(implementation, _refusal(y, rows)):
        s = y if gate is None else y * gate[:, :, None]
        s = (s if residual is None else residual + s).astype(y.dtype)
        z = rms_normal(s) * factor[:, :, None]
        return s, (z if shift is None else z + shift[:, :, None]).astype(y.dtype)

    def flat(vector: Array | None) -> Array | None:
        if vector is None:
            return None
        of_all = vector.shape[:2] == (1, 1)
        vector = vector if of_all else jnp.broadcast_to(vector, (videos, frames, width))
        return _wide(vector.reshape(-1, width))

    residual = None if residual is None else residual.reshape(-1, width)
    vectors = flat(gate), flat(factor), flat(shift)
    made: Any = _residual_norm(residual, y.reshape(-1, width), *vectors, rows)
    s, h = made
    return s.reshape(y.shape), h.reshape(y.shape)


def norm_silu(
    x: Float[Array, "B T H W C"],
    factor: Float[Array, " C"],
    ahead: int = 0,
    implementation: Implementation = None,
) -> tuple[Float[Array, "B T H W C"], Float[Array, "B t H W C"]]:
    """Returns `x`, and `silu(x / rms(x) factor)`, its first frame `ahead` times more.

    Read the first in place of `x`: what comes back for it is then added in the same pass.

    Args:
        x: Channels of every cell of a video.
        factor: One for every channel.
        ahead: How many frames like the first come before it.
        implementation: Which program.

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    videos, frames, height, width, channels = x.shape
    rows = _rows_of_videos(x, ahead, implementation == "interpret")
    if by_xla(implementation, _refusal(x, rows)):
        y = jax.nn.silu(rms_normal(x) * factor[(None,) * 4]).astype(x.dtype)
        return x, jnp.concatenate([y[:, :1]] * ahead + [y], 1)
    flat = x.reshape(-1, channels)
    made: Any = _residual_norm(None, flat, None, _wide(factor[None]), None, rows)
    s, y = made
    return s.reshape(x.shape), y.reshape(videos, frames + ahead, height, width, channels)


def gate_gradients(
    gradient: Float[Array, "B F P D"],
    x: Float[Array, "B F P D"],
    gate: Float[Array, "B F D"],
    implementation: Implementation = None,
) -> tuple[Float[Array, "B F P D"], Float[Array, "B F D"]]:
    """Returns the gradients of `gate x` for `x` and, in float32, for the gate of every frame.

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    videos, frames, tokens, width = x.shape
    rows = Rows(videos * frames, tokens, _tile(tokens, width), implementation == "interpret")
    if by_xla(implementation, _refusal(x, rows)):
        to_gate = jnp.sum(_wide(gradient) * _wide(x), 2)
        return (gradient * gate[:, :, None]).astype(x.dtype), to_gate
    from pallas_kernels.norms_triton import gate_backward

    given = gradient.reshape(-1, width), x.reshape(-1, width), gate.reshape(-1, width)
    to_x, to_gate = gate_backward(*given, rows)
    return to_x.reshape(x.shape), to_gate.reshape(gate.shape)


def head_norm(
    x: Float[Array, "B L N D"],
    gain: Float[Array, " D"],
    table: tuple[Float[Array, "L R"], Float[Array, "L R"]] | None = None,
    implementation: Implementation = None,
) -> Float[Array, "B L N D"]:
    """Returns `x / rms(x) gain` of every head, then turned by rotary positions.

    Args:
        x: Heads of every token.
        gain: What all are multiplied with.
        table: Cosines and sines of the angles by which pairs, of the first and the second half of
            a head, are turned; no gradients are computed for them. None turns nothing.
        implementation: Which program.

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    videos, tokens, heads, size = x.shape
    programs = videos * tokens // HEAD_TOKENS
    rows = Rows(programs, tokens, HEAD_TOKENS, implementation == "interpret")
    if by_xla(implementation, _refusal_of_heads(x, table, rows)):
        y = rms_normal(x) * gain[(None,) * 3]
        if table is not None:
            cosine, sine = (part[None, :, None] for part in table)
            low, high = jnp.split(y, 2, -1)
            y = jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], -1)
        return y.astype(x.dtype)
    halves = x.reshape(videos * tokens, heads, 2, size // 2)
    made: Any = _head_norm(halves, gain.reshape(2, -1), table, rows)
    return made.reshape(x.shape)


def serves_residual_norm(y: Float[Array, "B F P D"]) -> bool:
    """Returns whether `residual_norm` and `gate_gradients` have a kernel for such tokens here."""
    videos, frames, tokens, width = y.shape
    return not _refusal(y, Rows(videos * frames, tokens, _tile(tokens, width)))


def serves_norm_silu(x: Float[Array, "B T H W C"]) -> bool:
    """Returns whether `norm_silu` has a kernel for such videos here."""
    return not _refusal(x, _rows_of_videos(x))


def serves_head_norm(x: Float[Array, "B L N D"], table: tuple[Array, Array] | None = None) -> bool:
    """Returns whether `head_norm` has a kernel for such heads and positions here."""
    rows = Rows(x.shape[0] * x.shape[1] // HEAD_TOKENS, x.shape[1], HEAD_TOKENS)
    return not _refusal_of_heads(x, table, rows)


def _tile(rows: int, width: int) -> int:
    return min(rows, max(TILE // width, 1))


def _rows_of_videos(x: Array, ahead: int = 0, interpret: bool = False) -> Rows:
    """Returns rows of which a group is a part of a frame: as many as eight tiles, or all."""
    videos, frames, height, width, channels = x.shape
    tile = _tile(height * width, channels)
    size = min(height * width, 8 * tile)
    parts = height * width // size
    groups = videos * frames * parts
    return Rows(
        groups,
        size if parts * size == height * width else 0,
        tile,
        interpret,
        frames,
        parts,
        ahead,
        True,
    )


def _refusal(x: Array, rows: Rows) -> str:
    """Returns why there is no kernel for such rows here; empty if there is one."""
    width = x.shape[-1]
    if not 64 <= width <= 1024 or not is_power(width):
        return f"a width of {width} is not a power of two from 64 to 1024"
    if not rows.size or rows.size % rows.tile or not is_power(rows.tile):
        return f"tiles of a power of two do not divide {x.shape[1:-1]} rows"
    return "" if rows.interpret else refusal_of_device(x, rows.groups)


def _refusal_of_heads(x: Array, table: tuple[Array, Array] | None, rows: Rows) -> str:
    """Returns why there is no kernel for such heads here; empty if there is one."""
    tokens, heads, size = x.shape[1:]
    if not is_power(heads) or not is_power(size) or size < 32 or tokens % HEAD_TOKENS:
        return f"{heads} heads of {size} are no powers of two, or {tokens} tokens no multiple of 8"
    if table is not None and table[0].shape != (tokens, size // 2):
        return f"angles {table[0].shape} are not those of {tokens} tokens, of all heads"
    return "" if rows.interpret else refusal_of_device(x, rows.groups)


def refusal_of_device(x: Array, groups: int) -> str:
    """Returns why no kernel runs on the device that is here; empty if one does."""
    if reason := refusal_of_triton():
        return reason
    if x.dtype != jnp.bfloat16:
        return f"{x.dtype} is not bfloat16"
    return f"{groups} groups do not fill a GPU" if groups < PROGRAMS else ""


def by_xla(implementation: Implementation, reason: str) -> bool:
    """Returns whether XLA's form is taken."""
    if reason and implementation in ("triton", "interpret"):
        raise KernelUnavailable(f"{implementation}: {reason}; use implementation='xla'")
    return implementation == "xla" or bool(reason)


def is_power(number: int) -> bool:
    """Returns whether a number is a power of two."""
    return number > 0 and number & (number - 1) == 0


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def rms_normal(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the last axis divided by its root mean square, in float32."""
    return _wide(x) * jax.lax.rsqrt(jnp.mean(jnp.square(_wide(x)), -1, keepdims=True) + EPSILON)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _residual_norm(
    x: Float[Array, "N D"] | None,
    y: Float[Array, "N D"],
    gate: Float[Array, "G D"] | None,
    factor: Float[Array, "g D"],
    shift: Float[Array, "g D"] | None,
    rows: Rows,
) -> tuple[Float[Array, "N D"], Float[Array, "M D"]]:
    from pallas_kernels.norms_triton import norm_forward

    return norm_forward(x, y, gate, factor, shift, rows)


def _residual_norm_forward(x: Any, y: Any, gate: Any, factor: Any, shift: Any, rows: Rows) -> Any:
    given = [None if part is None else part.value for part in (x, y, gate, factor, shift)]
    made: Any = _residual_norm(*given, rows)
    _, y, gate, factor, shift = given
    return made, (made[0], None if gate is None else y, gate, factor, shift, x is not None)


def _residual_norm_backward(rows: Rows, saved: Any, cotangents: Any) -> Any:
    from pallas_kernels.norms_triton import norm_backward

    s, y, gate, factor, shift, added = saved
    zero = jax.custom_derivatives.SymbolicZero
    d_s, d_h = (None if isinstance(d, zero) else d for d in cotangents)
    d_h = jnp.zeros((rows.written * rows.size, s.shape[1]), s.dtype) if d_h is None else d_h
    vectors = {"factor": factor, "shift": shift, "gate": gate}
    vectors = {name: vector for name, vector in vectors.items() if vector is not None}
    given = {"s": s, "d_h": d_h, "d_s": d_s, "y": y, **vectors}
    made = norm_backward(given, tuple("d_" + name for name in vectors), rows)
    to: dict[str, Array] = {}
    for name, vector in vectors.items():
        each = made["d_" + name]
        to[name] = each if vector.shape[0] > 1 else jnp.sum(each, 0, keepdims=True)
    to_x, to_y = made["d_x"] if added else None, made.get("d_y", made["d_x"])
    return to_x, to_y, to.get("gate"), to["factor"], to.get("shift")


_residual_norm.defvjp(_residual_norm_forward, _residual_norm_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _head_norm(x: Array, gain: Array, table: tuple[Array, Array] | None, rows: Rows) -> Array:
    from pallas_kernels.norms_triton import head_forward

    return head_forward(x, gain, table, rows)


def _head_norm_forward(x: Array, gain: Array, table: Any, rows: Rows) -> Any:
    return _head_norm(x, gain, table, rows), (x, gain, table)


def _head_norm_backward(rows: Rows, saved: Any, d_out: Array) -> tuple[Array, Array, Any]:
    from pallas_kernels.norms_triton import head_backward

    x, gain, table = saved
    to_x, to_gain = head_backward(x, gain, table, d_out, rows)
    return to_x, to_gain, jax.tree.map(jnp.zeros_like, table)


_head_norm.defvjp(_head_norm_forward, _head_norm_backward)
