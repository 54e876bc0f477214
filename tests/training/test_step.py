"""One training step: its random key, its average, and what a step that is not finite leaves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm.training.state import init_state
from jvdm.training.step import make_step
from tests.training import toy


@jax.custom_vjp
def sloped(w, value, slope):
    """`value`, with the gradient `slope` in `w`: either may be finite where the other is not."""
    return value


sloped.defvjp(lambda w, value, slope: (value, slope), lambda slope, g: (g * slope, None, None))


@dataclasses.dataclass(frozen=True)
class Told:
    """A loss whose value and slope are those of the batch; its metrics show the call."""

    def init(self, key):
        return {"w": jnp.zeros(2)}

    def loss(self, params, batch, call):
        shown = {"drawn": jax.random.normal(call.key), "told": call.step, "average": call.ema["w"]}
        return sloped(params["w"], batch["value"], batch["slope"]), shown


class Table(toy.HostLines):
    """Batch `n` is row `n` of the data."""

    def draw(self, data, step, batch_size):
        return jax.tree.map(lambda column: column[step], data), data


TRANSFORM = optax.sgd(0.5, momentum=0.9)


def table(slopes, values=None):
    slopes = jnp.asarray(slopes, jnp.float32)
    return {"slope": slopes, "value": jnp.asarray(values or [1.0] * len(slopes), jnp.float32)}


def steps(data, decay=0.9, state=None, transform=TRANSFORM, seed=0):
    """All states of a run and the metrics of its steps."""
    run = jax.jit(make_step(Told(), Table(), transform, 1, decay).run)
    states, metrics = [state or init_state(Told(), transform, seed)], []
    for _ in range(int(states[0].step), len(data["value"])):
        state, _, seen = run({}, states[-1], data)
        states.append(state)
        metrics.append(seen)
    return states, metrics


def bits(state):
    """What a step that is not finite must leave, leaf by leaf."""
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["value", "slope"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(where, wrong):
    data = table([[1.0, 2.0]] * 5)
    data[where] = data[where].at[2].set(wrong).at[3].set(wrong)
    states, metrics = steps(data)
    one, two, three, four = map(bits, states[1:5])
    assert two == three == four and not set(one) & set(two)
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4, 5]
    assert [int(seen["skipped"]) for seen in metrics] == [0, 0, 1, 2, 2]
    assert [int(seen["skipped_in_row"]) for seen in metrics] == [0, 0, 1, 2, 0]
    assert bits(states[5]) != four


def test_the_average_is_that_of_its_closed_form():
    """Parameters jump from 0 to 1 in the first step; what is left of the 0 is a product.

    Of `(1 + n) / (10 + n)`, the warm-up, it is one over `N + 9` choose 9.
    """
    data = table([[-2.0, -2.0]] + [[0.0, 0.0]] * 19)
    left = [1 - float(s.ema["w"][0]) for s in steps(data, 0.9999, transform=optax.sgd(0.5))[0]]
    exact = [1 / math.comb(n + 9, 9) for n in range(21)]
    np.testing.assert_allclose(left, exact, atol=2e-7)
    capped = [1 - float(s.ema["w"][0]) for s in steps(data, 0.25, transform=optax.sgd(0.5))[0]]
    # 3 / 12 is a quarter: from the third step on the decay is what was asked for.
    np.testing.assert_allclose(capped[:4], exact[:4], atol=2e-7)
    np.testing.assert_allclose(capped[3:9], exact[2] * 0.25 ** np.arange(1, 7), atol=2e-7)


def test_every_step_has_a_key_of_its_own_that_follows_from_seed_and_step():
    data = table([[1.0, 2.0]] * 4)
    states, metrics = steps(data)
    drawn = [float(seen["drawn"]) for seen in metrics]
    assert len(set(drawn)) == 4
    elsewhere = dataclasses.replace(states[2], params={"w": jnp.ones(2)})
    assert [float(seen["drawn"]) for seen in steps(data, state=elsewhere)[1]] == drawn[2:]
    assert not set(drawn) & {float(seen["drawn"]) for seen in steps(data, seed=1)[1]}


def test_the_loss_is_told_its_step_and_the_average_before_it():
    states, metrics = steps(table([[1.0, 2.0]] * 4))
    assert [int(seen["told"]) for seen in metrics] == [0, 1, 2, 3]
    for state, seen in zip(states, metrics, strict=False):
        np.testing.assert_array_equal(seen["average"], state.ema["w"])


def test_the_norm_is_that_of_the_gradient():
    _, metrics = steps(table([[3.0, 4.0], [6.0, 8.0]]))
    assert [float(seen["gradient_norm"]) for seen in metrics] == [5.0, 10.0]
