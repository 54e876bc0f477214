"""How many operations a function needs, counted from its matrix products and convolutions."""

import math
from collections.abc import Callable
from typing import Any

import jax


def product_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the operations of all products in `function`; a multiply-add is two.

    Nothing is computed. Element-wise work and reductions do not count, as in the usual
    definition of model FLOP utilisation (Chowdhery et al., arXiv:2204.02311, appendix B).

    Args:
        function: Traceable function without data-dependent loops.
        *arguments: Its arguments, arrays or `jax.ShapeDtypeStruct`.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * math.prod(out.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            channel = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * math.prod(out.shape) * math.prod(kernel) / kernel[channel]
        repeats = equation.params.get("length", 1) if name == "scan" else 1
        for value in jax.tree.leaves(list(equation.params.values())):
            body = getattr(value, "jaxpr", value)
            if hasattr(body, "eqns"):
                total += repeats * _count(body)
    return total
