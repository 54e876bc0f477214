"""Attention over several devices: each computes some heads, or some queries, of some videos.

The kernel and its interface are those of one device (`pallas_kernels`); here is what goes around
it. Tokens of a video lie on the axes `ring` and `sequence` of the mesh, heads on `tensor`:

* over `sequence` an all-to-all gives every device all tokens of its part and some heads, and
  another one brings back the result (DeepSpeed-Ulysses, Jacobs et al., arXiv:2309.14509);
* over `ring` keys and values go round, and what was attended to is joined by log-sum-exp
  (ring attention, Liu et al., arXiv:2310.01889), block lists cut to the keys that are there;
* with both, the ring is outside (Fang and Zhao, arXiv:2405.07719).

Which blocks are attended to was chosen before, from all queries and keys as on one device. What
does not divide is padded: heads of zeros, whose result is dropped, and tokens that never count.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jvdm.arrays import Array, Float, Int
from jvdm.parallel.activations import used
from jvdm.parallel.mesh import ROWS, TOKENS, parts, present
from pallas_kernels import (
    BlockMask,
    Past,
    Prepared,
    block_sparse_attention,
    cached_attention,
    dense_attention,
    merge,
)
from pallas_kernels.attention.api import LONG_ON_TPU
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.pallas_tpu import PallasTPU

SPLIT = ("branch", *TOKENS, "tensor")
"""Axes over which a call of attention is split here. Over the videos of a batch XLA does it by
itself; over branches cuDNN's kernel refused what XLA made of it (two H200, jax 0.11.2)."""
BLOCK = 128
"""Tokens of a block of full lists, where a part has so many."""
LISTS = ("kv_indices", "kv_counts", "kv_full_counts")
"""Fields of a mask that have something for every block of queries of every head: ids and counts."""
BY_ROW = (*LISTS, "skip_log2")
"""All fields that do."""


def attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    mask: BlockMask | Prepared | None = None,
    return_lse: bool = False,
    past: Past | None = None,
) -> Any:
    """Computes attention among the pairs that `mask` allows, over the mesh that is in use.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: The blocks that are attended to, by number in the whole sequences; None is all. With
            `past` it may be prepared for one device.
        return_lse: Whether the log-sum-exp of the scores is returned too.
        past: Keys and values before these, of which the mask speaks first; one device reads them
            where they are.

    Returns:
        Attended values in the dtype of `q`, those of one device; with `return_lse` a pair of these
        and f32[B, N, Q], as of `block_sparse_attention`.
    """
    mesh = used()
    if past is not None and mask is not None and mesh is None:
        return cached_attention(q, k, v, past, mask, return_lse=return_lse)
    mask = mask.mask if isinstance(mask, Prepared) else mask
    if past is not None and mask is not None:
        k, v = past.before(k, v, mask.block_kv)
    whole = mask is None and not (_on_tpus(mesh) and min(q.shape[1], k.shape[1]) >= LONG_ON_TPU)
    if mesh is None or (whole and parts(mesh, SPLIT) == 1):
        return block_sparse_attention(q, k, v, mask, return_lse=return_lse)
    way = _Way.of(mesh, q.shape, k.shape[1], mask)
    queries, keys = way.units
    padded = (way.padded(q, queries), way.padded(k, keys), way.padded(v, keys))
    tokens = PartitionSpec(way.batch, present(mesh, TOKENS), present(mesh, ("tensor",)))
    lists, static = way.lists(mask)
    body = functools.partial(_on_a_device, way=way, static=static, return_lse=return_lse)
    specs = (tokens, tokens, tokens, {name: way.spec_of(name, lists[name]) for name in lists})
    sums: Any = PartitionSpec(tokens[0], tokens[2], tokens[1]) if return_lse else None
    island = jax.shard_map(
        body, mesh=mesh, in_specs=specs, out_specs=(tokens, sums), check_vma=False
    )
    made: Any = island(*padded, lists)
    out, lse = made
    out = out[:, : q.shape[1], : q.shape[2]]
    return (out, lse[:, : q.shape[2], : q.shape[1]]) if return_lse else out


def read(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    lengths: Int[Array, " B"] | None,
) -> Float[Array, "B Q N D"]:
    """Tokens of a video read a prompt, of which every device has all states.

    Args:
        q: Queries of the video.
        k: Keys of the prompt.
        v: Values of the prompt.
        lengths: How many states of a prompt count; None is all.
    """
    mesh = used()
    if mesh is None or parts(mesh, SPLIT) == 1:
        return dense_attention(q, k, v, kv_lengths=lengths)
    way = _Way.of(mesh, q.shape, k.shape[1], None, heads=("tensor",))
    q, k, v = (way.padded(x, size) for x, size in ((q, way.units[0]), (k, 1), (v, 1)))
    heads = present(mesh, ("tensor",))
    asked = PartitionSpec(way.batch, present(mesh, TOKENS), heads)
    told = PartitionSpec(way.batch, None, heads)
    counts = {} if lengths is None else {"kv_lengths": lengths}
    specs = (asked, told, told, {name: PartitionSpec(way.batch) for name in counts})

    def body(q: Array, k: Array, v: Array, counts: Any) -> Array:
        return dense_attention(q, k, v, **counts)

    island = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=asked, check_vma=False)
    return island(q, k, v, counts)[:, : way.lengths[0], : way.heads]


@dataclasses.dataclass(frozen=True)
class _Way:
    """How the arrays of one call are divided.

    Attributes:
        mesh: The devices.
        batch: Axes of the mesh that split videos.
        heads: Heads, without padding.
        head_parts: Parts that they are padded for.
        lengths: Queries and keys, without padding.
        blocks: Tokens of their blocks.
    """

    mesh: Mesh
    batch: tuple[str, ...]
    heads: int
    head_parts: int
    lengths: tuple[int, int]
    blocks: tuple[int, int]

    @classmethod
    def of(
        cls,
        mesh: Mesh,
        shape: tuple[int, ...],
        keys: int,
        mask: BlockMask | None,
        heads: tuple[str, ...] = ("tensor", "sequence"),
    ) -> "_Way":
        """Returns the way of a call; a batch that does not divide is computed everywhere."""
        divides = shape[0] % parts(mesh, ROWS) == 0
        ring, sizes = parts(mesh, ("ring",)), (shape[1], keys)
        full = tuple(min(BLOCK, 8 * -(-size // (8 * ring))) for size in sizes)
        blocks = (full[0], full[1]) if mask is None else (mask.block_q, mask.block_kv)
        batch = present(mesh, ROWS) if divides else ()
        return cls(mesh, batch, shape[2], parts(mesh, heads), sizes, blocks)

    @property
    def ring(self) -> int:
        """Devices that keys and values go round."""
        return parts(self.mesh, ("ring",))

    @property
    def sequence(self) -> int:
        """Devices that exchange tokens for heads."""
        return parts(self.mesh, ("sequence",))

    @property
    def units(self) -> tuple[int, int]:
        """Numbers of which the padded lengths are multiples: a ring has whole blocks."""
        if self.ring == 1:
            return self.sequence, self.sequence
        queries, keys = (self.ring * math.lcm(block, self.sequence) for block in self.blocks)
        return queries, keys

    def padded(self, x: Array, unit: int) -> Array:
        """Returns an array with tokens and heads of zeros at the end, so that it divides."""
        tokens, heads = -x.shape[1] % unit, -x.shape[2] % self.head_parts
        return jnp.pad(x, ((0, 0), (0, tokens), (0, heads), (0, 0)))

    def chunk(self, side: int) -> int:
        """Returns the tokens of a part of the ring, of queries (0) or keys (1)."""
        return -(-self.lengths[side] // self.units[side]) * self.units[side] // self.ring

    def lists(self, mask: BlockMask | None) -> tuple[dict[str, Array], dict[str, Any]]:
        """Returns the arrays of a mask, padded so that they divide, and its other fields.

        Over a ring they reach to the end of its last part: no query there has a list, and no key
        counts.
        """
        if mask is None:
            return {}, {}
        arrays: dict[str, Array] = {}
        static: dict[str, Any] = {}
        for field in dataclasses.fields(mask):
            value = getattr(mask, field.name)
            if field.metadata.get("static"):
                static[field.name] = value
            elif value is not None:
                arrays[field.name] = value
        for name in BY_ROW:
            if name in arrays and arrays[name].shape[1] > 1:
                more = -arrays[name].shape[1] % self.head_parts
                arrays[name] = _longer(arrays[name], 1, more, "edge")
        if self.ring == 1:
            return arrays, static
        rows, columns = (self.ring * self.chunk(side) // self.blocks[side] for side in (0, 1))
        ends = dict.fromkeys(BY_ROW, (2, rows)) | {"q_lengths": (1, rows)}
        ends |= {"q_coords": (1, rows * self.blocks[0]), "kv_coords": (1, columns * self.blocks[1])}
        for name, (axis, size) in ends.items():
            if name in arrays:
                more, nothing = size - arrays[name].shape[axis], -1 if "coords" in name else 0
                arrays[name] = _longer(arrays[name], axis, more, constant_values=nothing)
        if columns * self.blocks[1] > self.lengths[1]:
            ends_at = self.lengths[1] - self.blocks[1] * np.arange(columns)
            usual = jnp.asarray(np.clip(ends_at, 0, self.blocks[1])[None], jnp.int32)
            given = arrays.get("kv_lengths", usual)
            arrays["kv_lengths"] = jnp.minimum(
                usual, _longer(given, 1, columns - given.shape[1], constant_values=0)
            )
        return arrays, static

    def spec_of(self, name: str, leaf: Array) -> PartitionSpec:
        """Returns how an array of a mask is split: over a ring a device has those of its queries.

        Videos and heads are split unless one serves all.
        """
        batch = self.batch if leaf.shape[0] > 1 else None
        ring = present(self.mesh, ("ring",))
        if name in BY_ROW:
            heads = present(self.mesh, ("tensor", "sequence")) if leaf.shape[1] > 1 else None
            return PartitionSpec(batch, heads, ring)
        return PartitionSpec(batch, ring if name.startswith("q_") else None)


def _longer(x: Array, axis: int, more: int, mode: str = "constant", **fill: Any) -> Array:
    """Returns an array with so many more entries at the end of an axis."""
    return jnp.pad(x, [(0, more if one == axis else 0) for one in range(x.ndim)], mode, **fill)


def _on_a_device(
    q: Array,
    k: Array,
    v: Array,
    lists: dict[str, Array],
    way: _Way,
    static: dict[str, Any],
    return_lse: bool,
) -> tuple[Array, Array | None]:
    """Attends with the tokens and heads of one device."""
    if way.sequence > 1:
        trade = functools.partial(jax.lax.all_to_all, axis_name="sequence", tiled=True)
        q, k, v = (trade(x, split_axis=2, concat_axis=1) for x in (q, k, v))
    if way.ring > 1:
        out, lse = _around(q, k, v, lists, static, way)
    else:
        length, (queries, keys) = q.shape[1], way.lengths
        mask = BlockMask(**lists, **static) if lists else None
        parts = (q[:, :queries], k[:, :keys], v[:, :keys])
        out, lse = _attend(*parts, mask, way, return_lse)
        more = (0, length - queries)
        out = jnp.pad(out, ((0, 0), more, (0, 0), (0, 0)))
        lse = None if lse is None else jnp.pad(lse, ((0, 0), (0, 0), more))
    lse = lse if return_lse else None
    if way.sequence > 1:
        out = trade(out, split_axis=1, concat_axis=2)
        lse = None if lse is None else trade(lse, split_axis=2, concat_axis=1)
    return out, lse


def _attend(
    q: Array, k: Array, v: Array, mask: BlockMask | None, way: _Way, return_lse: bool = False
) -> tuple[Array, Array | None]:
    """Calls the kernel; log-sum-exps are returned where they are asked for.

    On TPUs all blocks are listed rather than none, for XLA would keep the scores of all pairs. A
    program for TPUs that are not there (`jvdm plan`) has the kernel that it would have there.
    """
    if _on_tpus(way.mesh):
        mask = BlockMask.full(q.shape[1], k.shape[1]) if mask is None else mask
        planned = jax.default_backend() != "tpu"
        if planned and not PallasTPU(interpret=True).refusal(q, k, mask):
            return attend(PallasTPU(), q, k, v, mask, q.shape[3] ** -0.5)
    made = block_sparse_attention(q, k, v, mask, return_lse=return_lse)
    return made if return_lse else (made, None)


def _on_tpus(mesh: Mesh | None) -> bool:
    """Whether the devices of a mesh are TPUs, which need not be there."""
    return mesh is not None and getattr(mesh.devices.flat[0], "platform", "none") == "tpu"


def _around(
    q: Array,
    k: Array,
    v: Array,
    lists: dict[str, Array],
    static: dict[str, Any],
    way: _Way,
) -> tuple[Array, Array]:
    """Attends to the keys of all devices of the ring, those that are there first."""
    mine = jax.lax.axis_index("ring")
    places = [(i, (i + 1) % way.ring) for i in range(way.ring)]
    sources = (mine - np.arange(way.ring)) % way.ring
    masks = jax.vmap(functools.partial(_part, lists, static, way))(sources)
    # Keys that set out before the lists are there would hold up what chooses them: a device sends
    # one thing after the other.
    k, v, masks = jax.lax.optimization_barrier((k, v, masks))

    # The backward pass makes the scores of a part again instead of keeping them.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attended(q: Array, k: Array, v: Array, mask: BlockMask) -> tuple[Array, Array]:
        both: Any = _attend(q, k, v, mask, way, return_lse=True)
        return both[0].astype(jnp.float32), both[1]

    joined: Any = None
    for turn in range(way.ring):
        here = (k, v)
        if turn + 1 < way.ring:  # on their way while these are computed with
            k, v = (jax.lax.ppermute(x, "ring", places) for x in (k, v))
        found = attended(q, *here, jax.tree.map(lambda x: x[turn], masks))  # noqa: B023
        joined = found if joined is None else merge(*joined, *found)
    return joined[0].astype(q.dtype), joined[1]


def _part(
    lists: dict[str, Array], static: dict[str, Any], way: _Way, source: Int[Array, ""]
) -> BlockMask:
    """Returns the lists of the queries of this device among the keys of part `source`."""
    queries, keys = way.chunk(0), way.chunk(1)
    columns = keys // way.blocks[1]
    sizes: dict[str, Any] = {"q_len": queries, "kv_len": keys}
    if not lists:  # all keys that are no padding
        held = jnp.clip(way.lengths[1] - source * keys, 0, keys)
        return BlockMask.full(queries, keys, *way.blocks, kv_count=held)
    ids = lists["kv_indices"] - source * columns
    entry, width = np.arange(ids.shape[3])[None, None, None], min(ids.shape[3], columns)
    here = (ids >= 0) & (ids < columns)
    kept = {name: here & (entry < lists[name][..., None]) for name in LISTS[1:] if name in lists}
    counts = {name: jnp.sum(among, 3, dtype=jnp.int32) for name, among in kept.items()}
    last = (~kept["kv_counts"]).astype(jnp.int32)  # in their order, full ones first
    ids = jax.lax.sort((last, ids), dimension=3, num_keys=1, is_stable=True)[1][..., :width]
    ids = jnp.where(entry[..., :width] < counts["kv_counts"][..., None], ids, 0)
    of_keys = {"kv_lengths": columns, "kv_coords": keys}
    of_queries = ("q_lengths", "q_coords", "skip_log2")
    rest = {name: lists[name] for name in of_queries if name in lists} | {
        name: jax.lax.dynamic_slice_in_dim(lists[name], source * size, size, 1)
        for name, size in of_keys.items()
        if name in lists
    }
    return BlockMask(ids, **counts, **rest, **(static | sizes))
