"""How annotations are checked: by beartype, which makes the checks of a function once."""

from collections.abc import Callable
from typing import Any

import beartype

_KNOWN: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the checks of `function`, whose body jaxtyping left out.

    A function inside another is new in every call of that one; its checks are those of the one
    before, if its annotations are: to write and compile them takes beartype a millisecond.
    """
    made: Any = function
    optional = len(made.__defaults__ or ()), *(made.__kwdefaults__ or ())
    name = made.__module__, made.__qualname__, made.__code__
    try:
        known = (*name, optional, tuple(made.__annotations__.items()))
        if known not in _KNOWN:
            _KNOWN[known] = beartype.beartype(function)
        return _KNOWN[known]
    except TypeError:  # an annotation that cannot be compared
        return beartype.beartype(function)
