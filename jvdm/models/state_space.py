"""Scans of all tokens whose cost is linear in them: Mamba2 in both directions, after an overview.

The MA branch of LinGen's MATE block (arXiv:2412.09856), whose TE branch is the attention policy
`TemporalSwin`. A layer reads the tokens of a clip in one of four orders, by turns (rotary-major
scan): by rows or by columns of frames, and of a place through time by rows or by columns. Before
the first token a scan has read the means of boxes of tokens (review tokens), so that it begins with
an overview of the clip.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Tokens
from jvdm.attention import TokenGrid
from jvdm.errors import ConfigError
from jvdm.models.layers import Linear, RMSNorm
from jvdm.parallel.exchange import by_heads

ORDERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0))
"""Axes of frames, rows and columns from the slowest to the fastest: those of a layer by turns."""
AT_ONCE = 32
"""Chunks that are computed together; the states before them are scanned one after the other."""
TAPS = 4  # tokens that the convolution before a scan sees, as in Mamba2
Sides = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Mamba2:
    """A scan of all tokens beside the attention of a layer, or in its place.

    Attributes:
        state: Numbers of the state for each feature.
        expand: Features that are scanned, in widths of the network.
        chunk: Tokens of a chunk; it changes no result.
        review: Frames, rows and columns of tokens of a box, whose mean is read first; None
            is no overview. The paper does not say it; ours.
        rotary: Whether layers take turns with four orders; else all go by rows of frames.
        beside: Whether attention stays and both are added; else the scan is alone.
    """

    state: int = 64
    expand: int = 2
    chunk: int = 128
    review: Sides | None = (4, 8, 8)
    rotary: bool = True
    beside: bool = True

    def check(self, inner: int, head_dim: int) -> None:
        """Raises `ConfigError` if there is no such scan."""
        numbers = {"state": self.state, "expand": self.expand, "chunk": self.chunk}
        numbers |= {"review": min(self.review)} if self.review else {}
        bad = [f"{name} {value}" for name, value in numbers.items() if value < 1]
        if bad:
            raise ConfigError(f"a scan of {', '.join(bad)}", "it must be at least 1", "use more")
        if inner % head_dim:
            what = f"{inner} features that are scanned in heads of {head_dim}"
            raise ConfigError(what, "they do not divide", "use another head_dim, width or expand")


class TokenScan(nn.Module):
    """Scans of all tokens in both directions (Dao and Gu, arXiv:2405.21060)."""

    rule: Mamba2
    head_dim: int
    grid: TokenGrid
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, x: Tokens, layer: Int[Array, ""]) -> Tokens:
        """Returns what every token reads of all, in the order of layer number `layer`.

        Raises:
            ConfigError: If these are not all tokens of the grid.
        """
        rule, width = self.rule, x.shape[-1]
        inner = rule.expand * width
        if x.shape[1] != self.grid.tokens:
            what = f"a scan of {x.shape[1]} of {self.grid.tokens} tokens"
            raise ConfigError(what, "it reads all of a clip", "use a step cache of whole rows")
        heads = inner // self.head_dim
        sizes = (inner, inner, 2 * rule.state, 2 * heads)
        values, gates, common, steps = Linear(sizes, self.dtype, name="in")(x)
        taps = nn.initializers.variance_scaling(1.0, "fan_in", "normal", (1,), (0, 2), (0,))
        of_heads = (
            self.param("taps", taps, (2, TAPS, inner))
            .reshape(2, TAPS, heads, -1)
            .transpose(2, 0, 1, 3),
            self.param("rate", _rates, (2, heads)).T,
            self.param("step", _steps, (2, heads)).T,
            self.param("skip", nn.initializers.ones, (heads,))[:, None],
        )
        taps_of_common = self.param("common_taps", taps, (2, TAPS, 2 * rule.state))
        tokens = (
            values.reshape(*x.shape[:2], heads, -1),
            jnp.moveaxis(steps.reshape(*x.shape[:2], 2, heads), 2, 3),
        )

        def body(tokens: Any, common: Any, of_heads: Any, whole: Any) -> Array:
            return _both_ways(rule, self.grid, whole[0], (*tokens, *common, *of_heads, whole[1]))

        whole = (layer, taps_of_common)
        y = by_heads(body, tokens, (common,), of_heads, whole).reshape(gates.shape)
        y = RMSNorm(name="norm")(y * nn.silu(gates)).astype(self.dtype)
        return Linear((width,), self.dtype, scale=0.3, name="out")(y)[0]


def _rates(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draws logarithms of rates between 1 and 16, as Mamba2 does."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def _steps(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draws what `softplus` makes steps of between .001 and .1, as Mamba2 does."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
    return step + jnp.log(-jnp.expm1(-step))


def _both_ways(rule: Mamba2, grid: TokenGrid, layer: Array, given: Sequence[Array]) -> Array:
    """Returns the sum of the scans to the end and to the beginning, of some heads."""
    values, steps, common, *weights = given
    sides = (grid.frames, grid.height, grid.width)
    orders = ORDERS if rule.rotary else ORDERS[:1]

    def turned(ways: Sequence[Callable[[Array], Array]], x: Array) -> Array:
        return ways[0](x) if len(ways) == 1 else jax.lax.switch(layer % len(ways), ways, x)

    def in_order(x: Array, sides: Sides) -> Array:
        ways = [functools.partial(_in_order, axes=axes) for axes in orders]
        return turned(ways, x.reshape(x.shape[0], *sides, -1))

    flat = (values.reshape(common.shape[0], common.shape[1], -1), common)
    flat = (*flat, steps.reshape(common.shape[0], common.shape[1], -1))
    joined = jnp.concatenate([part.astype(values.dtype) for part in flat], -1)
    sizes = (flat[0].shape[-1], flat[0].shape[-1] + common.shape[-1])
    everything = in_order(joined, sides)
    if rule.review is not None:
        review = in_order(*means_of_boxes(joined, sides, rule.review))

    y = jnp.zeros(values.shape, jnp.float32)
    for way in range(2):
        scan = functools.partial(chunked_scan, chunk=rule.chunk, back=bool(way))
        state = None
        if rule.review is not None:
            x, decay, b, c, _ = _scanned(way, jnp.split(review, sizes, -1), values.shape, weights)
            _, state = scan(x, decay, b, c)
        x, decay, b, c, kept = _scanned(
            way, jnp.split(everything, sizes, -1), values.shape, weights
        )
        y = y + scan(x, decay, b, c, state)[0] + kept
    ways = [functools.partial(_in_raster, axes=axes, sides=sides) for axes in orders]
    flat_y = y.astype(values.dtype).reshape(common.shape[0], common.shape[1], -1)
    return turned(ways, flat_y).reshape(values.shape)


def _scanned(
    way: int, inputs: Sequence[Array], shape: tuple[int, ...], weights: Sequence[Array]
) -> tuple[Array, Array, Array, Array, Array]:
    """Returns what `chunked_scan` is given of the tokens, and what passes it by.

    Args:
        way: 0 to the end, 1 to the beginning.
        inputs: Values, what is common to heads, and steps of tokens in the order of the scan.
        shape: Of the values of a clip.
        weights: Those of heads, and the taps of what is common.
    """
    taps, rate, first_step, skip, common_taps = weights
    values, common, steps = inputs
    values = values.reshape(*values.shape[:2], *shape[2:])
    values = nn.silu(_convolved(values, jnp.moveaxis(taps[:, way], 0, 1), bool(way)))
    b, c = jnp.split(nn.silu(_convolved(common, common_taps[way], bool(way))), 2, -1)
    steps = steps.reshape(*steps.shape[:2], -1, 2)[..., way].astype(jnp.float32)
    steps = jax.nn.softplus(steps + first_step[:, way][None, None])
    decay = -steps * jnp.exp(rate[:, way])[None, None]
    written = (values * steps[..., None]).astype(values.dtype)
    return written, decay, b, c, skip[None, None] * values.astype(jnp.float32)


def _in_order(x: Array, axes: Sides) -> Array:
    """Returns `[B, F, H, W, D]` as tokens, the last of `axes` the fastest."""
    return x.transpose(0, *(1 + axis for axis in axes), 4).reshape(x.shape[0], -1, x.shape[-1])


def _in_raster(x: Array, axes: Sides, sides: Sides) -> Array:
    """Inverse of `_in_order`, as tokens in raster order."""
    grid = x.reshape(x.shape[0], *(sides[axis] for axis in axes), x.shape[-1])
    back = [1 + axes.index(axis) for axis in range(3)]
    return grid.transpose(0, *back, 4).reshape(x.shape)


def means_of_boxes(
    x: Float[Array, "B L D"], sides: Sides, box: Sides
) -> tuple[Float[Array, "B R D"], Sides]:
    """Returns the mean of every box of a grid of tokens, and how many there are along each side.

    Boxes at the end of a side have what is left of it.
    """
    counts = (-(-sides[0] // box[0]), -(-sides[1] // box[1]), -(-sides[2] // box[2]))
    ends = [(0, n * part - side) for n, part, side in zip(counts, box, sides, strict=True)]
    split = [size for pair in zip(counts, box, strict=True) for size in pair]

    def sums(x: Array) -> Array:
        x = jnp.pad(x.astype(jnp.float32), [(0, 0), *ends, (0, 0)])
        return x.reshape(x.shape[0], *split, x.shape[-1]).sum((2, 4, 6))

    total = sums(x.reshape(x.shape[0], *sides, -1)) / sums(jnp.ones((1, *sides, 1)))
    return total.astype(x.dtype).reshape(x.shape[0], -1, x.shape[-1]), counts


def _convolved(x: Array, taps: Array, back: bool) -> Array:
    """Weighs every feature of a token and of those before it, or after it; `taps` `[T, ...]`."""
    length, out = x.shape[1], jnp.zeros((), x.dtype)
    for place in range(len(taps)):
        ends = (0, place) if back else (place, 0)
        moved = jnp.pad(x, [(0, 0), ends, *((0, 0),) * (x.ndim - 2)])
        moved = moved[:, place:] if back else moved[:, :length]
        out = out + moved * taps[place][None, None].astype(x.dtype)
    return out


def chunked_scan(
    x: Float[Array, "B L N P"],
    decay: Float[Array, "B L N"],
    b: Float[Array, "B L S"],
    c: Float[Array, "B L S"],
    state: Float[Array, "B N P S"] | None = None,
    *,
    chunk: int = 128,
    back: bool = False,
) -> tuple[Float[Array, "B L N P"], Float[Array, "B N P S"]]:
    """Computes `h = exp(decay) h + x b`, `y = c h` token after token, in float32.

    Within chunks it is products of matrices, between them a scan of states; some chunks at a
    time, so that memory beside inputs and outputs is that of a few. Sums of decays are of
    logarithms, and every exponential is at most 1 (Dao and Gu, arXiv:2405.21060, section 6).

    Args:
        x: What is written at each token.
        decay: Logarithm of what is left of the state, at most 0.
        b: Where in the state it is written.
        c: Where it is read.
        state: The state before the first token; None is zeros.
        chunk: Tokens of a chunk.
        back: Whether the last token comes first.

    Returns:
        What is read at every token, and the state after all.
    """
    batch, length, heads, _ = x.shape
    chunk = min(chunk, length)
    many = min(AT_ONCE, -(-length // chunk))
    groups = -(-length // (chunk * many))
    rest = groups * many * chunk - length

    def grouped(leaf: Array) -> Array:
        leaf = jnp.pad(leaf, [(0, 0), (0, rest), *((0, 0),) * (leaf.ndim - 2)])
        leaf = leaf.reshape(batch, groups, many, chunk, *leaf.shape[2:])
        return jnp.moveaxis(leaf, 1, 0)

    if state is None:
        state = jnp.zeros((batch, heads, x.shape[3], b.shape[-1]), jnp.float32)
    inputs = tuple(map(grouped, (x, decay.astype(jnp.float32), b, c)))
    step = jax.checkpoint(functools.partial(_some_chunks, back=back))
    state, y = jax.lax.scan(step, state, inputs, reverse=back)
    y = jnp.moveaxis(y, 0, 1).reshape(batch, -1, *x.shape[2:])
    return y[:, :length], state


def _some_chunks(state: Array, given: tuple[Array, ...], back: bool) -> tuple[Array, Array]:
    """Scans chunks `[B, G, C, ...]` from a state; returns the next one, and what is read."""
    x, decay, b, c = given
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    sums = jax.lax.cumsum(decay, axis=2, reverse=back)
    total = sums[:, :, 0 if back else -1]
    places = jnp.arange(decay.shape[2])
    seen = places[:, None] <= places[None] if back else places[:, None] >= places[None]
    by_head = jnp.moveaxis(sums, 3, 2)
    left = by_head[..., :, None] - by_head[..., None, :]
    left = jnp.exp(jnp.where(seen[None, None, None], left, -jnp.inf))
    scores = einsum("bgis,bgjs->bgij", c, b)[:, :, None] * left
    y = einsum("bgnij,bgjnp->bginp", scores.astype(x.dtype), x)

    kept = jnp.exp(total[:, :, None] - sums)
    written = einsum("bgjnp,bgjs->bgnps", (x * kept[..., None]).astype(x.dtype), b)
    decays, states = jax.lax.associative_scan(_then, (total, written), axis=1, reverse=back)
    states = states + jnp.exp(decays)[..., None, None] * state[:, None]
    before = states[:, 1:] if back else states[:, :-1]
    ends = (before, state[:, None]) if back else (state[:, None], before)
    before = jnp.concatenate(ends, 1)
    read = einsum("bgis,bgnps->bginp", c, before.astype(c.dtype))
    y = y + read * jnp.exp(sums)[..., None]
    return states[:, 0 if back else -1], y.astype(x.dtype)


def _then(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns decay and state of two runs of tokens, one after the other."""
    return one[0] + two[0], jnp.exp(two[0])[..., None, None] * one[1] + two[1]
