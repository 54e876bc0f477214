"""Several modalities in one run, such as video and audio: dicts of what one has.

Latents, matrices, processes, solvers and addresses are values, or dicts of them by the name of the
modality. All modalities share the rows of the run, and one call of the network sees them all; each
has frames, levels and noise of its own. A single value is the ordinary case: `each` is then the
function itself, so it is the same program.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jvdm.arrays import Array
from jvdm.errors import ConfigError


def each(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Applies a function to the values of every modality, or to the values where there is one.

    Args:
        function: Takes one value of each argument.
        first: A dict by name, or the value itself; the others are of the same kind.
        others: What else the function takes.
    """
    if not isinstance(first, Mapping):
        return function(first, *others)
    return {name: function(first[name], *(other[name] for other in others)) for name in first}


def every(value: Any, like: Any) -> Any:
    """Returns a value for each modality of `like`; one that is given alone is all of theirs.

    Raises:
        ConfigError: If it is given by name, and the names are others.
    """
    if not isinstance(like, Mapping):
        return value
    if not isinstance(value, Mapping):
        return dict.fromkeys(like, value)
    if set(value) != set(like):
        raise ConfigError(
            f"{', '.join(sorted(map(str, value)))} were given",
            f"the modalities of the run are {', '.join(sorted(like))}",
            "give one value for each, or one for all",
        )
    return dict(value)


def any_of(flags: Any) -> Array:
    """Returns whether any flag is true, of any modality."""
    parts = list(flags.values()) if isinstance(flags, Mapping) else [flags]
    return functools.reduce(jnp.logical_or, [jnp.any(part) for part in parts])
