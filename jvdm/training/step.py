"""One training step: batch, loss, gradient, update, average."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jvdm.arrays import Array, PyTree
from jvdm.products import product_flops
from jvdm.training.objective import (
    HasPasses,
    HasUpdate,
    Objective,
    Source,
    TrainCall,
    Transform,
    Updated,
)
from jvdm.training.residuals import again, left
from jvdm.training.state import TrainState


class Step(NamedTuple):
    """A step to be traced, `run(frozen, state, data) -> (state, data, metrics)`, and its price.

    `flops(frozen, state, data)` takes shapes and returns the operations of the products of
    the model: three times those of the loss (once forward, twice backward; recomputation
    does not count) or what the objective says, or all in an update of the objective's own.
    `kept(frozen, state, data)` takes shapes and returns the bytes that the loss leaves for its
    gradient (`jvdm.training.residuals`), with what the dearest layer that is computed again leaves
    for its own, on all devices together, beside what it is given; 0 for an update of the
    objective's own.
    """

    run: Callable[[PyTree, TrainState, PyTree], tuple[TrainState, PyTree, dict[str, Array]]]
    flops: Callable[[PyTree, TrainState, PyTree], float]
    kept: Callable[[PyTree, TrainState, PyTree], int]


def make_step(
    objective: Objective,
    source: Source,
    transform: Transform,
    batch_size: int,
    ema_decay: float,
) -> Step:
    """Returns the step of a run.

    The random key of a step is a function of the run's key and the step number,
    so that a resumed run draws what an uninterrupted one would have drawn. A
    step whose loss or gradient is not finite leaves parameters, average and
    optimizer as they were and is counted.
    """
    # Jitted so that the step and the count share one trace; inlined, they leave no mark.
    draw = jax.jit(lambda data, step: source.draw(data, step, batch_size), inline=True)
    loss = jax.jit(lambda *given: objective.loss(*given), inline=True)
    own: Any = objective.update if isinstance(objective, HasUpdate) else None
    update = jax.jit(lambda *given: own(*given, transform), inline=True)

    def told(frozen, state, data):
        with jax.named_scope("data"):
            batch, data = draw(data, state.step)
        key = jax.random.fold_in(state.key, state.step)
        return batch, TrainCall(state.step, key, state.ema, frozen), data

    def run(frozen, state, data):
        batch, call, data = told(frozen, state, data)
        given = (state.params, state.opt_state, batch, call)
        new = update(*given) if own else _descend(loss, transform, *given)
        decay = _warm_decay(ema_decay, state.step)
        state = _after(state, new, decay)
        counts = {"skipped": state.skipped, "skipped_in_row": state.skipped_in_row}
        seen = {"loss": new.loss, "gradient_norm": new.gradient_norm}
        return state, data, {**seen, **new.metrics, **counts}

    def flops(frozen, state, data):
        def model(frozen, state, data):
            batch, call, _ = told(frozen, state, data)
            if own:
                return update(state.params, state.opt_state, batch, call)
            return loss(state.params, batch, call)

        drawn = product_flops(draw, data, state.step)
        usual = objective.passes if isinstance(objective, HasPasses) else 3.0
        return (1.0 if own else usual) * (product_flops(model, frozen, state, data) - drawn)

    def kept(frozen, state, data):
        def forward(params, frozen, state, data):
            batch, call, _ = told(frozen, state, data)
            return loss(params, batch, call)[0]

        def backward(params, *given):
            return jax.vjp(lambda params: forward(params, *given), params)[1]

        given = (state.params, frozen, state, data)
        once, both = (jax.make_jaxpr(run)(*given).jaxpr for run in (forward, backward))
        return left(both, len(both.invars)) + again(once, both)

    return Step(run, flops, (lambda *_: 0) if own else kept)


def _descend(
    loss_of: Callable,
    transform: Any,
    params: PyTree,
    opt_state: PyTree,
    batch: PyTree,
    call: TrainCall,
) -> Updated:
    """One gradient of the loss, one optimizer."""
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
    (loss, metrics), gradient = gradient_of(params, batch, call)
    with jax.named_scope("optimizer"):
        updates, opt_state = transform.update(gradient, opt_state, params)
    norm = optax.tree.norm(gradient)
    return Updated(optax.apply_updates(params, updates), opt_state, loss, norm, metrics)


def _after(state: TrainState, new: Updated, decay: Array) -> TrainState:
    """Returns the state after an update, that before where the update is not finite."""
    finite = jnp.isfinite(new.loss) & jnp.isfinite(new.gradient_norm)
    with jax.named_scope("average"):
        ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, new.params)
    moved = (new.params, ema, new.opt_state)
    kept = (state.params, state.ema, state.opt_state)
    params, ema, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
    bad = jnp.where(finite, 0, 1)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        ema=ema,
        opt_state=opt_state,
        skipped=state.skipped + bad,
        skipped_in_row=(state.skipped_in_row + 1) * bad,
    )


def _warm_decay(decay: float, step: Array) -> Array:
    """Averages over about a tenth of the run so far until `decay` is reached."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))
