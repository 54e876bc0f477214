"""Networks whose policy asks for an order of tokens, or for other attention in some layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import Draft, Window
from jvdm.errors import ConfigError
from jvdm.samplers import Call
from tests.models.small import DIT, conditions, parameters

SHAPE = (2, 2, 6, 10, 4)  # frames of 3 x 5 tokens
X = jax.random.normal(jax.random.key(0), SHAPE)
T = jnp.array([[0.1, 0.9], [0.4, 0.6]])
Whole = functools.partial(Draft, 0.9999, recall_queries=0)  # all blocks, in the order of tiles


@functools.cache
def made(policy):
    """Prediction, carry and features of all layers."""
    model = DIT.clone(policy=policy, collect=(0, 1, 2))
    run = jax.jit(lambda p: model.apply({"params": p}, X, Call.at(T), conditions(), None))
    return run(parameters())


@pytest.mark.parametrize(
    "policy",
    [
        Whole(dense_layers=0, block=4),  # 3 x 5 tokens in tiles of 2 x 2: with padding
        Whole(dense_layers=2, block=4),
        Whole(dense_layers=1, block=5),  # without
    ],
)
def test_the_order_of_tokens_changes_nothing_outside(policy):
    plain, ours = made(DIT.policy), made(policy)
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[1].features, plain[1].features, rtol=1e-4, atol=1e-4)
    layers = policy.dense_layers
    assert ours[1].layers.dense.tolist() == [1.0] * layers + [0.0] * (3 - layers)


def test_density_1_is_dense_to_the_bit():
    np.testing.assert_array_equal(made(Draft(1.0))[0], made(DIT.policy)[0])


def test_dense_layers_are_the_first_and_others_are_sparse():
    plain, ours = (
        made(DIT.policy)[1].features,
        made(Window(0.2, dense_layers=1, block=5, recall_queries=0))[1],
    )
    np.testing.assert_allclose(ours.features[0], plain[0], rtol=1e-4, atol=1e-4)
    assert np.abs(ours.features[1] - plain[1]).max() > 1e-2
    assert ours.layers.density[0] == 1 and (ours.layers.density[1:] < 0.25).all()


def test_gradients_pass_the_order_and_the_division_of_layers():
    def loss(p, policy):
        model = DIT.clone(policy=policy)
        return (model.apply({"params": p}, X, Call.at(T), conditions(), None)[0] ** 2).mean()

    ours, plain = (
        jax.jit(jax.grad(functools.partial(loss, policy=policy)))(parameters())
        for policy in (Whole(dense_layers=1, block=4), DIT.policy)
    )
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3 * float(np.abs(two).max()))


def test_more_dense_layers_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="dense_layers is 3; the network has 3 layers"):
        DIT.clone(policy=Draft(dense_layers=3)).start(2, 6, 10)
