"""What a function needs, counted from its matrix products and convolutions."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention.planned import operations as operations_of_call

_CUDNN_ATTENTION = "dot_product_attention_fwd"
_FREE = ("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "stop_gradient", "copy")


def product_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the operations of all products in `function`; a multiply-add is two.

    Nothing is computed. Element-wise work and reductions do not count, as in the usual
    definition of model FLOP utilisation (Chowdhery et al., arXiv:2204.02311, appendix B).
    Of the branches of a condition the dearest counts, of a loop whose length is not
    known one turn; a Pallas kernel counts what its cost estimate says, if it has one.

    Args:
        function: Traceable function.
        *arguments: Its arguments, arrays or `jax.ShapeDtypeStruct`.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def product_bytes(function: Callable[..., Any], *arguments: Any, scores: bool = True) -> int:
    """Returns the bytes of the largest product in `function`, what goes in and what comes out.

    A function cannot do with less memory: what is multiplied is there at once.

    Args:
        function: Traceable function.
        *arguments: Its arguments, arrays or `jax.ShapeDtypeStruct`.
        scores: Whether products with a batch count, such as the scores of attention, which
            fused kernels never hold.
    """
    return _largest(jax.make_jaxpr(function)(*arguments).jaxpr, scores)


def counted(function: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    """Returns `product_flops`, and `product_bytes` of products with weights, traced once."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _count(jaxpr), _largest(jaxpr, scores=False)


def device_bytes(tree: Any) -> int:
    """Returns the bytes that a device holds of arrays or shapes; one without a place is whole."""

    def of(leaf: Any) -> int:
        place = getattr(leaf, "sharding", None)
        shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return math.prod(shape) * (8 if is_key else leaf.dtype.itemsize)

    return sum(map(of, jax.tree.leaves(tree)))


def _largest(jaxpr: Any, scores: bool) -> int:
    sizes = [0]
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        batched = name == "dot_general" and bool(equation.params["dimension_numbers"][1][0])
        if name in ("dot_general", "conv_general_dilated") and (scores or not batched):
            values = [value.aval for value in (*equation.invars, *equation.outvars)]
            sizes.append(sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in values))
        sizes += [_largest(body, scores) for body in bodies_of(equation)]
    return max(sizes)


def _count(jaxpr: Any) -> float:
    return float(sum(map(_equation, jaxpr.eqns)))


def _equation(equation: Any) -> float:
    name, given = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(value.aval, "shape", ()) for value in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = given["dimension_numbers"]
        depth = math.prod(shapes[0][axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
    if name == "conv_general_dilated":
        channel = given["dimension_numbers"].rhs_spec[0]
        depth = math.prod(shapes[1]) / shapes[1][channel]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
    if name.startswith(_CUDNN_ATTENTION):  # q, k, v [B, L, N, D], or [B, N, L, D]
        keys = shapes[1][2 if given["layout"] else 1]
        return 2.0 * math.prod(shapes[0][:3]) * keys * (shapes[0][3] + shapes[2][3])
    if name == "ffi_call":
        each = operations_of_call(given["target_name"], given["attributes"])
        return float(each) * math.prod(shapes[0])
    if estimate := given.get("cost_estimate"):
        return float(estimate.flops)
    bodies = [_count(body) for body in bodies_of(equation)]
    if name == "cond":
        return max(bodies)
    return _repeats(name, given) * sum(bodies) if bodies else 0.0


def bodies_of(equation: Any) -> list[Any]:
    """Returns the programs inside an equation, such as the body of a loop."""
    leaves = jax.tree.leaves([*equation.params.values()])
    leaves = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def _repeats(name: str, given: dict[str, Any]) -> int:
    """How often the body of an equation runs."""
    if name == "scan":
        return given["length"]
    if name == "shard_map":  # shapes in it are those of one device
        mesh = given["mesh"]
        axes = given.get("newly_manual_axes", given.get("manual_axes", mesh.axis_names))
        return math.prod(mesh.shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(given["grid_mapping"].grid)
    return 1


class Operation(NamedTuple):
    """An operation of a traced function.

    Attributes:
        path: Named scopes around it, from the outside in, parted by slashes.
        name: Name of its primitive.
        times: How often it runs.
        flops: Operations each time: of products as `product_flops` counts them, else a number of
            the result, or of what is reduced, is one.
        bytes: What it reads and writes each time. Others than products, reductions and copies are
            fused with their neighbours and count what they write alone.
        shapes: Shapes of its arguments.
        reads: Bytes of each of them.
        batched: Whether it is a product with a batch, such as the scores of attention.
    """

    path: str
    name: str
    times: int
    flops: float
    bytes: int
    shapes: tuple[tuple[int, ...], ...]
    reads: tuple[int, ...]
    batched: bool


def operations(function: Callable[..., Any], *arguments: Any) -> Iterator[Operation]:
    """Returns the operations of `function`, those in loops once with how often they run.

    Of the branches of a condition those of the dearest are returned.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return itertools.starmap(_operation, equations_of(jaxpr))


def equations_of(
    jaxpr: Any, times: int = 1, path: str = "", *, each: bool = False
) -> Iterator[tuple[Any, int, str]]:
    """Returns the innermost equations, how often each runs, and the named scopes around it.

    Of the branches of a condition those of the dearest are returned. What devices do with parts of
    their own counts once for each of them, or with `each` once, as on each of them.
    """
    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, equation.params
        inner = "/".join(filter(None, (path, str(equation.source_info.name_stack))))
        bodies = bodies_of(equation)
        if not bodies or name == "pallas_call" or name.startswith(_CUDNN_ATTENTION):
            yield equation, times, inner
            continue
        if name == "cond":
            bodies = [max(bodies, key=_count)]
        turns = 1 if each and name == "shard_map" else _repeats(name, given)
        for body in bodies:
            yield from equations_of(body, times * turns, inner, each=each)


def _operation(equation: Any, times: int, path: str) -> Operation:
    name, given = equation.primitive.name, equation.params
    read, written = (
        [value.aval for value in values if hasattr(value.aval, "shape")]
        for values in (equation.invars, equation.outvars)
    )
    whole, results = (sum(math.prod(aval.shape) for aval in avals) for avals in (read, written))
    product, reduces = _equation(equation), name.startswith(("reduce", "arg", "cum"))
    moves = name in ("gather", "scatter", "sort", "transpose", "concatenate")
    touched = [*read, *written] if product or reduces or moves else written
    if name in _FREE:
        return Operation(path, name, times, 0.0, 0, (), (), False)
    batched = name == "dot_general" and bool(given["dimension_numbers"][1][0])
    flops = product or float(whole if reduces else 0 if moves else results)
    shapes = tuple(tuple(aval.shape) for aval in read)
    reads, size = tuple(map(_bytes, read)), sum(map(_bytes, touched))
    return Operation(path, name, times, flops, size, shapes, reads, batched)


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)
