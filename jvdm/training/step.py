"""One training step: batch, loss, gradient, update, average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jvdm.arrays import Array, PyTree
from jvdm.training.objective import HasUpdate, Objective, Source, TrainCall, Transform, Updated
from jvdm.training.state import TrainState

Step = Callable[[PyTree, TrainState, PyTree], tuple[TrainState, PyTree, dict[str, Array]]]


def make_step(
    objective: Objective,
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    ema_decay: float,
) -> Step:
    """Returns `step(frozen, state, data) -> (state, data, metrics)`, not yet jitted.

    The random key of a step is a function of the run's key and the step number,
    so that a resumed run draws what an uninterrupted one would have drawn. A
    step whose loss or gradient is not finite leaves parameters, average and
    optimizer as they were and is counted.
    """
    own = objective.update if isinstance(objective, HasUpdate) else None

    def step(frozen, state, data):
        batch, data = source.draw(data, state.step, batch_size)
        key = jax.random.fold_in(state.key, state.step)
        call = TrainCall(state.step, key, state.ema, frozen)
        given = (state.params, state.opt_state, batch, call, transform)
        new = own(*given) if own else _descend(objective, *given)
        finite = jnp.isfinite(new.loss) & jnp.isfinite(new.gradient_norm)
        decay = _warm_decay(ema_decay, state.step)
        ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, new.params)

        moved = (new.params, ema, new.opt_state)
        kept = (state.params, state.ema, state.opt_state)
        params, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), moved, kept
        )
        bad = jnp.where(finite, 0, 1)
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema=ema,
            opt_state=opt_state,
            skipped=state.skipped + bad,
            skipped_in_row=(state.skipped_in_row + 1) * bad,
        )
        counts = {"skipped": state.skipped, "skipped_in_row": state.skipped_in_row}
        seen = {"loss": new.loss, "gradient_norm": new.gradient_norm}
        return state, data, {**seen, **new.metrics, **counts}

    return step


def _descend(
    objective: Objective,
    params: PyTree,
    opt_state: PyTree,
    batch: PyTree,
    call: TrainCall,
    transform: Any,
) -> Updated:
    """One gradient of the loss, one optimizer."""
    gradient_of = jax.value_and_grad(objective.loss, has_aux=True)
    (loss, metrics), gradient = gradient_of(params, batch, call)
    updates, opt_state = transform.update(gradient, opt_state, params)
    norm = optax.global_norm(gradient)
    return Updated(optax.apply_updates(params, updates), opt_state, loss, norm, metrics)


def _warm_decay(decay: float, step: Array) -> Array:
    """Averages over about a tenth of the run so far until `decay` is reached."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))
