"""What a caller may do between two steps: look, end the run, or change the latents."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Latents
from jvdm.errors import ConfigError
from jvdm.samplers.matrices import level_at
from jvdm.samplers.modalities import each

Callback = Callable[[int, Any], Any]
"""Gets the number of a finished step and its latents; returns True to end, or other latents."""

StepEnd = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]
"""The same as in Diffusers: gets pipeline, step, noise level and `{"latents": x}`."""


def check(**callbacks: Any) -> None:
    """Refuses what cannot be called, and two at once, before any work.

    Raises:
        ConfigError: It names the argument.
    """
    given = {name: callback for name, callback in callbacks.items() if callback is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} were given", "one is called", "leave one out")
    for name, callback in given.items():
        if not callable(callback):
            what = f"{name} is {callback!r:.80}"
            raise ConfigError(what, "it is called after each step", "give a function")


def of_step_end(function: StepEnd, pipe: Any, matrix: Any) -> Callback:
    """Returns the callback that calls a function of Diffusers' kind."""

    def call(step: int, latents: Latents) -> Any:
        level: Any = each(lambda rows: float(np.max(level_at(rows, rows.index[step]))), matrix)
        answer = function(pipe, step, level, {"latents": latents})
        if answer is None:
            return None
        if not isinstance(answer, Mapping):
            what = f"callback_on_step_end returned a {type(answer).__name__}"
            raise ConfigError(what, "it may return nothing or a dictionary", 'add {"latents": x}')
        return answer.get("latents")

    return call


def after_step(callback: Callback, step: int, x: Any) -> tuple[Any, bool]:
    """Calls back; returns the latents that replace those of the run if any, and whether it ends.

    Args:
        callback: It gets a copy, because the next step overwrites the state.
        step: Number of the finished step.
        x: Its latents; of several modalities a dict, and so is what is returned.

    Raises:
        ConfigError: If the answer is neither nothing, nor a truth value, nor latents like `x`.
    """
    answer = callback(step, each(jnp.copy, x))
    if answer is None or isinstance(answer, bool | np.bool_):
        return None, bool(answer)
    if isinstance(x, Mapping):
        names = set(answer) if isinstance(answer, Mapping) else set()
        if names != set(x):
            what = f"the callback of step {step} returned {answer!r:.80}"
            fix = "return nothing to look only"
            raise ConfigError(what, f"it may return latents of {' and '.join(sorted(x))}", fix)
    return each(functools.partial(_like, step), x, answer), False


def _like(step: int, x: Latents, answer: Any) -> Latents:
    """Returns an answer as latents that take the place of `x`."""
    shape = getattr(answer, "shape", None)
    if shape != x.shape or not jnp.issubdtype(answer.dtype, jnp.floating):
        given = f"{answer!r:.80}" if shape is None else f"{answer.dtype} of the shape {shape}"
        raise ConfigError(
            f"the callback of step {step} returned {given}",
            f"it may return nothing, True to end, or latents of the shape {x.shape}",
            "return nothing to look only",
        )
    return jax.device_put(jnp.asarray(answer, x.dtype), x.sharding)
