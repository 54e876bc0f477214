"""Programs of a network with routers: one for each width that rows of a run need, and no more."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import PyTree
from jvdm.models.dynamic_width import needed
from jvdm.samplers.matrices import times
from jvdm.system import System

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where from the levels of a row to the next routers are asked: solvers evaluate between them."""


def of_rows(systems: Sequence[System], params: PyTree, matrix: Any) -> tuple[System, ...]:
    """Returns the system of every row with the width of its program.

    Routers of width read levels alone, so what a row needs is known before it runs: the heads and
    groups of channels of all frames that it feeds, in the layer that needs most, up to the next
    bucket. Where a call at other levels needs more, what fewest of its frames need is left out.

    Args:
        systems: Those of the rows.
        params: Parameters of the networks.
        matrix: Levels of the rows.
    """
    model: Any = systems[0].model if systems else None
    rule = getattr(model, "dynamic", None)
    if rule is None or isinstance(matrix, Mapping) or rule.complete or rule.width is not None:
        return tuple(systems)
    counts = _needs(systems[0], params["model"], matrix)
    parts, made = rule.parts(model.width // model.head_dim), {}

    def one(system: System, needs: np.ndarray) -> System:
        width = tuple(rule.bucket(int(n), whole) for n, whole in zip(needs, parts, strict=True))
        key = (id(system), width)
        if key not in made and width != parts:
            narrow = system.model.clone(dynamic=dataclasses.replace(rule, width=width))
            made[key] = dataclasses.replace(system, model=narrow)
        return made.get(key, system)

    return tuple(map(one, systems, counts))


def _needs(system: System, params: PyTree, matrix: Any) -> np.ndarray:
    """Returns how many heads and groups every row needs, `[R, 2]`."""
    levels, starts = np.asarray(times(matrix)), np.asarray(matrix.start)
    seen = starts[:, None] + np.arange(matrix.window)
    now, then = (np.take_along_axis(rows, seen, 1)[:, None] for rows in (levels[:-1], levels[1:]))
    told = now + (then - now) * np.asarray(SHARES, np.float32)[None, :, None]
    if system.sampling.context is not None:
        told = np.where(told == 0, np.float32(system.sampling.context.level), told)
    calls = system.process.model_time(jnp.asarray(told.reshape(-1, matrix.window)))
    return needed(system.model, params, calls).reshape(len(starts), len(SHARES), 2).max(1)
