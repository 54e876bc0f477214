"""Everything that a training run changes, as one pytree."""

import typing

import flax.struct
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Int, Key, PyTree
from jvdm.keys import named
from jvdm.training.objective import Objective, Transform


@typing.no_type_check
@flax.struct.dataclass
class TrainState:
    """The carry of training; donated to every step.

    `skipped` counts the non-finite steps so far, `skipped_in_row` those since
    the last finite one.
    """

    step: Int[Array, ""]
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    key: Key
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def init_state(objective: Objective, transform: Transform, seed: int) -> TrainState:
    """Returns the state before the first step; traceable."""
    key = jax.random.key(seed)
    params = objective.init(named(key, "parameters"))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=transform.init(params),
        key=named(key, "training"),
        skipped=zero,
        skipped_in_row=jnp.copy(zero),
    )
