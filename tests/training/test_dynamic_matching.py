"""Training of routers: what the loss is made of, what it asks for, and from which weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm.configs import dydit
from jvdm.errors import ConfigError, WeightsError
from jvdm.models.dynamic_width import DynamicWidth, layer_costs
from jvdm.parallel import data_mesh
from jvdm.samplers.timesteps import Drawn
from jvdm.training import setup
from jvdm.training.dynamic_matching import DynamicMatching
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.objective import TrainCall
from tests.generate import nano

RULE = DynamicWidth(groups=4, bias=2.0, token_bias=2.0)
SYSTEM = dataclasses.replace(nano.SYSTEM, model=nano.DIT.clone(dynamic=RULE))
PLAIN = FlowMatching(nano.SYSTEM, rows=Drawn(stratified=True))
OURS = DynamicMatching(
    SYSTEM, rows=PLAIN.rows, target=0.6, full_steps=10, falling_steps=20, complete_steps=30
)


@pytest.fixture(scope="module")
def params() -> Any:
    """Random ones, with routers as they are made."""
    return nano.drawn(OURS.init, jax.random.key(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Any:
    """A folder of the network without routers."""
    return nano.write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def batch() -> Any:
    """Four random clips, untold."""
    tokens = jax.tree.map(lambda leaf: jnp.repeat(leaf, 4, 0), nano.TEXT.read(("",))[0])
    return {"latents": jax.random.normal(jax.random.key(1), (4, 3, 4, 4, 4)), "tokens": tokens}


def call(step: int, seed: int = 0) -> TrainCall:
    """What a loss is told."""
    return TrainCall(jnp.int32(step), jax.random.key(seed), {}, {})


LOSS = jax.jit(lambda objective, *given: objective.loss(*given), static_argnums=0)


def test_the_loss_is_that_of_gates_and_of_everything_at_equal_noise(params, batch):
    loss, said = LOSS(OURS, params, batch, call(20))
    plain, _ = LOSS(PLAIN, params, batch, call(20))
    np.testing.assert_allclose(said["complete"], plain, rtol=1e-6)
    assert abs(float(said["gated"] - plain)) > 1e-4, "no gate was closed"
    asked = OURS.weight * (said["share"] - said["aim"]) ** 2
    np.testing.assert_allclose(loss, said["gated"] + said["complete"] + asked, rtol=1e-6)
    later, said = LOSS(OURS, params, batch, call(30))
    assert said["complete"] == 0
    np.testing.assert_allclose(later, said["gated"] + OURS.weight * (said["share"] - 0.6) ** 2)


def test_the_target_falls_after_the_first_steps():
    aims = [float(OURS.aim(jnp.int32(step))) for step in (0, 10, 20, 30, 1000)]
    np.testing.assert_allclose(aims, [1.0, 1.0, 0.8, 0.6, 0.6], rtol=1e-6)
    at_once = dataclasses.replace(OURS, full_steps=0, falling_steps=0)
    np.testing.assert_allclose(at_once.aim(jnp.int32(1)), 0.6)


def test_the_share_counts_each_frame_with_its_own_width():
    attention, mlp, rest = layer_costs(SYSTEM.model, 12)
    assert attention == 8 * 32**2 + 4 * 32 * 12 and mlp == 16 * 32**2
    spent, latents = jnp.array([[[1.0, 0.5], [1.0, 0.25]]] * 2), jnp.zeros((2, 3, 4, 4, 4))
    found, whole = OURS.share(spent, latents), attention + mlp + rest
    np.testing.assert_allclose(
        found, [1.0, (0.5 * attention + 0.25 * mlp + rest) / whole], rtol=1e-6
    )


@pytest.mark.slow
def test_steps_from_weights_without_routers_reach_the_target(batch, weights):
    """Routers close with the steps, and the share follows the target."""
    aimed = dataclasses.replace(OURS, full_steps=0, falling_steps=20, weight=20.0, complete_steps=0)
    transform: Any = optax.adam(3e-2)
    begun = setup.given(aimed, weights)
    state = setup.make_state(aimed, transform, 0, data_mesh(1), begun)
    given: Any = state.params
    shipped = nano.safetensors.load(weights / "model.safetensors")
    kernel = shipped["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(given["model"]["layers"]["mlp"]["up"]["kernel"], kernel)
    assert np.any(given["model"]["layers"]["width_router"]["to_parts"]["kernel_0"])

    @functools.partial(jax.jit, compiler_options=nano.QUICKLY)
    def step(params, state, number):
        told = TrainCall(number, jax.random.key(number), params, {})
        slope, said = jax.grad(aimed.loss, has_aux=True)(params, batch, told)
        change, state = transform.update(slope, state, params)
        return jax.tree.map(jnp.add, params, change), state, said["share"]

    params, memory, shares = given, transform.init(given), []
    for number in range(60):
        params, memory, share = step(params, memory, jnp.int32(number))
        shares.append(float(share))
    assert shares[0] > 0.7
    assert abs(np.mean(shares[-10:]) - 0.6) < 0.06


def test_other_parts_that_a_file_lacks_are_still_refused(weights):
    other = dataclasses.replace(SYSTEM, model=SYSTEM.model.clone(ports=("text", "channel")))
    objective = dataclasses.replace(OURS, system=other)
    with pytest.raises(WeightsError, match="missing: channel_in/kernel"):
        setup.given(objective, weights)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": 0.0}, "target of 0"),
        ({"full_steps": -1}, "below 0"),
        ({"system": nano.SYSTEM}, "VideoDiT has none"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(OURS, **fields)


def test_a_target_below_what_always_counts_is_refused(params, batch):
    with pytest.raises(ConfigError, match="target of 0.1.*always count"):
        jax.eval_shape(dataclasses.replace(OURS, target=0.1).loss, params, batch, call(0))


def test_the_recipe_adds_routers_to_the_shipped_network():
    experiment: Any = dydit.config()
    assert experiment.objective.system.model.dynamic == dydit.RULE
    assert experiment.start_from.name == "nano"
