"""What a program will send between devices, counted from its shapes and the mesh.

For devices whose compiler is not here. A compiler may send more, to move activations that lie
otherwise than a product wants them, or less, where it finds another way: what XLA sends for CPUs is
compared in `tests/parallel/test_foreseen.py`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jvdm.arrays import PyTree
from jvdm.parallel.collectives import KINDS
from jvdm.parallel.mesh import BATCH, ROWS, TOKENS, parts
from jvdm.parallel.placement import sums
from jvdm.products import equations_of

_SENDS = {
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
}
"""What primitives of JAX are called here."""


def foreseen(jaxpr: Any, parameters: PyTree, mesh: Mesh, trains: bool) -> Mapping[str, int]:
    """Returns the bytes that each device will send in one run, by kind of collective.

    Rings are assumed, as of `jvdm.parallel.collectives.sent`. Counted is, in the number type of
    the products:

    * of every parameter that `fsdp` splits, its gathering for a pass forward, in training once
      more for the pass backward, whose gradient is summed where it lies (reduce-scatter);
    * in training the sum of the gradients of all others over the devices that share a batch or
      the tokens of a video;
    * with `tensor`, the sum after the second product of each pair, backward before the first;
    * what a program exchanges by itself: heads for tokens, keys and values that go round.

    Args:
        jaxpr: The program, traced while the mesh is in use.
        parameters: Shapes, placed.
        mesh: The devices.
        trains: Whether gradients are taken of the parameters.
    """
    found: Counter[str] = Counter()
    equations = list(equations_of(jaxpr, each=True))
    itemsize = _itemsize(equations)
    for leaf in jax.tree.leaves(parameters):
        found.update(_of_parameter(leaf, mesh, itemsize, trains))
    for equation, times, path in equations:
        name = equation.primitive.name
        if name in _SENDS:
            found[_SENDS[name]] += times * _exchanged(equation, mesh)
        elif name == "dot_general" and _is_summed(equation, path):
            size = itemsize * math.prod(equation.outvars[0].aval.shape)
            size //= parts(mesh, (*ROWS, *TOKENS))
            found["all-reduce"] += times * 2 * _share(size, parts(mesh, ("tensor",)))
    return {kind: found[kind] for kind in KINDS if found[kind]}


def _itemsize(equations: list[tuple[Any, int, str]]) -> int:
    """Returns the bytes of a number that most products with weights read."""
    found: Counter[int] = Counter()
    for equation, times, _ in equations:
        if equation.primitive.name == "dot_general":
            (_, _), (batch, _) = equation.params["dimension_numbers"]
            result, read = equation.outvars[0].aval, equation.invars[0].aval
            found[read.dtype.itemsize] += 0 if batch else times * math.prod(result.shape)
    return max(found, key=lambda size: found[size], default=4)


def _share(size: int, count: int) -> int:
    """Returns what each of so many devices sends of an array that it gathers from a ring."""
    return size * (count - 1) // count


def _of_parameter(leaf: Any, mesh: Mesh, itemsize: int, trains: bool) -> Counter[str]:
    """Returns what is sent for a parameter and its gradient."""
    named = (axes for axes in leaf.sharding.spec if axes)
    axes = {axis for axes in named for axis in ([axes] if isinstance(axes, str) else axes)}
    held = itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
    shares = parts(mesh, tuple(axes & {*BATCH, *TOKENS}))
    others = parts(mesh, tuple({*BATCH, *TOKENS} - axes))
    passes = 2 if trains else 1
    found = Counter({"all-gather": passes * _share(shares * held, shares)})
    if trains:
        found["reduce-scatter"] = _share(shares * held, shares)
        found["all-reduce"] = 2 * _share(held, others)
    return found


def _exchanged(equation: Any, mesh: Mesh) -> int:
    """Returns what a device sends for an equation that says so itself."""
    given = equation.params
    axes = given.get("axis_name", given.get("axes", ()))
    count = parts(mesh, (axes,) if isinstance(axes, str) else tuple(axes))
    avals = [value.aval for value in equation.outvars]
    size = sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals)
    kind = _SENDS[equation.primitive.name]
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (count - 1)
    return (2 if kind == "all-reduce" else 1) * _share(size, count)


def _is_summed(equation: Any, path: str) -> bool:
    """Whether the result of a product is summed over the devices that share its features."""
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    if batch or len(contracted) != 1:  # of attention, or of a gradient of parameters
        return False
    backward = "transpose(" in path and "rematted" not in path
    modules = filter(None, re.split(r"[/()]", path))
    return any(sums(module, backward) for module in modules)
