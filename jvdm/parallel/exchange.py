"""Work along all tokens of a video, head by head, where tokens lie on several devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jvdm.arrays import Array, Float
from jvdm.parallel.activations import used
from jvdm.parallel.mesh import ROWS, TOKENS, parts, present

HEADS = ("tensor", *TOKENS)


def by_heads(
    body: Callable[..., Any],
    tokens: Sequence[Float[Array, "B L N _"]],
    common: Sequence[Float[Array, "B L _"]] = (),
    heads: Sequence[Float[Array, "N ..."]] = (),
    whole: Sequence[Array] = (),
) -> Float[Array, "B L N P"]:
    """Returns `body(tokens, common, heads, whole)`, of which every device computes some heads.

    An all-to-all gives a device all tokens of its heads, and another one brings back the result
    (DeepSpeed-Ulysses, Jacobs et al., arXiv:2309.14509). Heads that do not divide are padded.

    Args:
        body: Computes every head by itself, from what is given of it.
        tokens: What is known of every token and head.
        common: What is known of every token and serves all heads: every device gets it whole.
        heads: What is known of every head.
        whole: What else there is.
    """
    mesh = used()
    if mesh is None or parts(mesh, HEADS) == 1:
        return body(tuple(tokens), tuple(common), tuple(heads), tuple(whole))
    _, length, count, _ = tokens[0].shape
    axes, tensor = present(mesh, TOKENS), present(mesh, ("tensor",))
    batch = present(mesh, ROWS) if tokens[0].shape[0] % parts(mesh, ROWS) == 0 else ()
    more, rest = -count % parts(mesh, HEADS), -length % parts(mesh, TOKENS)

    def traded(x: Array, give: int, take: int) -> Array:
        if not axes:
            return x
        return jax.lax.all_to_all(x, axes, split_axis=give, concat_axis=take, tiled=True)

    def on_a_device(tokens: Any, common: Any, heads: Any, whole: Any) -> Array:
        mine = tuple(traded(x, 2, 1)[:, :length] for x in tokens)
        made = body(mine, common, heads, whole)
        return traded(jnp.pad(made, ((0, 0), (0, rest), (0, 0), (0, 0))), 1, 2)

    padded = [jnp.pad(x, ((0, 0), (0, rest), (0, more), (0, 0))) for x in tokens]
    of_heads = [jnp.pad(x, ((0, more), *((0, 0),) * (x.ndim - 1))) for x in heads]
    spec = PartitionSpec(batch, axes, tensor)
    specs = (
        tuple(spec for _ in padded),
        tuple(PartitionSpec(batch) for _ in common),
        tuple(PartitionSpec(present(mesh, HEADS)) for _ in of_heads),
        tuple(PartitionSpec() for _ in whole),
    )
    island = jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)
    return island(tuple(padded), tuple(common), tuple(of_heads), tuple(whole))[:, :length, :count]
