"""What a pass forward leaves for the one backward, where a compiler fuses what is cheap.

JAX keeps every value that a gradient reads. A compiler keeps what must be in memory anyway, which
is what products, convolutions and loops read and write, and makes the rest of it again where it is
read: a slope of GELU from what went into it, a normalised token from a token. Beside XLA's own
programs for an H200 that is 1 to 11 % off (`docs/devices.md`), JAX's list up to four times.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from jvdm.products import bodies_of

_AGAIN = ("remat", "remat2", "checkpoint")
_CALLS = ("jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", *_AGAIN)
_VIEWS = ("reshape", "transpose", "squeeze", "expand_dims", "copy", "name", "sharding_constraint")
_VIEWS += ("optimization_barrier",)
_READS = ("dot_", "conv_", "scan", "while", "cond", "pallas_call", "ffi_call", "shard_map")
"""Beginnings of names of what finds its arguments in memory."""
_WRITES = (*_READS, "reduce_", "arg", "cum", "gather", "scatter", "sort", "concatenate", "dynamic_")
_WRITES += ("random_", "threefry", "rng_", "all_", "psum", "ppermute", "top_k", "fft", "linalg")


class _Value:
    """An array of a program.

    Attributes:
        size: Bytes; 0 of what is held by others.
        of: What it is computed from.
        stored: Whether it is in memory for itself, not only while others are computed.
    """

    def __init__(self, size: int, of: Sequence["_Value"] = (), stored: bool = False):
        self.size, self.of, self.stored = size, of, stored


def left(jaxpr: Any, given: int) -> int:
    """Returns the bytes of what a program leaves.

    Args:
        jaxpr: A program that returns what a gradient reads, as `jax.vjp` makes it.
        given: So many of its arguments, from the first, are held by others.
    """
    made: list[_Value] = []
    arguments = [_Value(_size(v) if i >= given else 0) for i, v in enumerate(jaxpr.invars)]
    for value in arguments:
        value.stored = True
    asked = dict.fromkeys(_through(jaxpr, [*arguments], made))
    sources: dict[_Value, dict[_Value, None]] = {}
    for value in (*arguments, *made):  # each comes after what it is computed from
        found = [sources[one] for one in value.of]
        sources[value] = {value: None} if value.stored else {k: None for s in found for k in s}
    kept: dict[_Value, None] = {}
    for value in sorted(asked, key=lambda value: -value.size):
        more = [one for one in sources[value] if one not in kept]
        again = sum(one.size for one in more) <= value.size
        kept.update(dict.fromkeys(more if again else [value]))
    return sum(value.size for value in kept)


def again(forward: Any, both: Any) -> int:
    """Returns the most bytes that a part which a backward pass computes again leaves for itself.

    Args:
        forward: A program as it runs without a gradient, whose parts `jax.checkpoint` marks.
        both: The same as `jax.vjp` makes it: there those that have no gradient are still marked.
    """
    return max(_parts(forward) - _parts(both), default=0)


def _parts(jaxpr: Any) -> Counter[int]:
    """Returns what the marked parts of a program leave for their gradients."""
    found: Counter[int] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name not in _AGAIN:
            for body in bodies_of(equation):
                found += _parts(body)
            continue
        part: Any = core.jaxpr_as_fun(core.ClosedJaxpr(equation.params["jaxpr"], ()))
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
        backward = jax.make_jaxpr(lambda *given, part=part: jax.vjp(part, *given)[1])(*shapes)
        found[left(backward.jaxpr, len(shapes))] += 1
    return found


def _through(jaxpr: Any, arguments: Sequence[_Value], made: list[_Value]) -> list[_Value]:
    """Returns the results of a program; adds what it makes to `made`, in order."""
    known = dict(zip(jaxpr.invars, arguments, strict=True))

    def new(variable: Any, of: Sequence[_Value], stored: bool) -> _Value:
        made.append(_Value(_size(variable), of, stored))
        return made[-1]

    def read(variable: Any) -> _Value:
        if hasattr(variable, "val"):  # a number in the program
            return new(variable, (), False)
        if variable not in known:
            known[variable] = new(variable, (), True)
        return known[variable]

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [read(one) for one in equation.invars]
        bodies = bodies_of(equation)
        if name in _CALLS and len(bodies) == 1 and len(bodies[0].invars) == len(inputs):
            outputs = _through(bodies[0], inputs, made)
        elif name == "scan" and equation.params["unroll"] >= equation.params["length"]:
            outputs = _unrolled(equation, inputs, made)
        elif name in _VIEWS:
            outputs = inputs
        else:
            for one in inputs:
                one.stored |= name.startswith(_READS)
            stored = name.startswith(_WRITES) and name != "reduce_precision"
            outputs = [new(one, inputs, stored) for one in equation.outvars]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(one) for one in jaxpr.outvars]


def _unrolled(equation: Any, inputs: list[_Value], made: list[_Value]) -> list[_Value]:
    """Returns the results of a loop whose turns a compiler sees one after the other."""
    given, (body,) = equation.params, bodies_of(equation)
    if "ft_in" in given:  # from JAX 0.11 on
        first, carried, _ = map(len, given["ft_in"].unpack())
    else:
        first, carried = given["num_consts"], given["num_carry"]
    last = first + carried
    constants, carry, along = inputs[:first], inputs[first:last], inputs[last:]
    turns, results = [], []
    for _ in range(given["length"]):
        parts = [
            _Value(0 if not one.size else _size(variable), (one,))
            for one, variable in zip(along, body.invars[last:], strict=True)
        ]
        made += parts
        results = _through(body, [*constants, *carry, *parts], made)
        carry = results[: last - first]
        for one in carry:  # what a turn hands on is read by many
            one.stored = True
        turns.append(results[last - first :])
    stacked = []
    for variable, *parts in zip(equation.outvars[last - first :], *turns, strict=True):
        stacked.append(_Value(_size(variable), parts))
    made += stacked
    return [*carry, *stacked]


def _size(variable: Any) -> int:
    aval = variable.aval
    return math.prod(getattr(aval, "shape", ())) * getattr(aval.dtype, "itemsize", 8)
