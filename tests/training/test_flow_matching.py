"""The video model's objective: exact cases, masks, prompts, operations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import nano
from jvdm.samplers.timesteps import CleanPrefix, TrainTimes
from jvdm.training.flops import product_flops
from jvdm.training.flow_matching import NULL
from jvdm.training.objective import TrainCall

OBJECTIVE: Any = nano.config().objective
SHAPE = (4, *OBJECTIVE.latent_shape)
BATCH = {
    "latents": jax.random.normal(jax.random.key(0), SHAPE),
    "tokens": jnp.full((4, 64), 0, jnp.int32).at[:, :3].set(jnp.arange(5, 8)),
}


def call(seed):
    return TrainCall(jnp.int32(0), jax.random.key(seed), {}, {})


@dataclasses.dataclass(frozen=True)
class Known(type(OBJECTIVE)):
    """An objective whose 'network' answers with a given error per frame."""

    error: float = 0.0

    def predict(self, params, x, t, tokens):
        """Returns the exact velocity of noise that is known, plus an error."""
        wide = t[:, :, None, None, None]
        clean = BATCH["latents"]
        noise = (x - (1 - wide) * clean) / jnp.where(wide > 0, wide, 1.0)
        return noise - clean + self.error


def known(**changes) -> Any:
    fields = {f.name: getattr(OBJECTIVE, f.name) for f in dataclasses.fields(OBJECTIVE)}
    return Known(**{**fields, **changes})


def test_the_exact_velocity_has_no_loss_and_an_error_its_square():
    assert known().loss({}, BATCH, call(1))[0] < 1e-9
    np.testing.assert_allclose(known(error=0.5).loss({}, BATCH, call(1))[0], 0.25, rtol=1e-4)


def test_clean_context_has_no_loss():
    def prefix(key, batch, latent_frames):
        times = CleanPrefix()(key, batch, latent_frames)
        return TrainTimes(times.t, times.loss_mask)

    objective = known(rows=prefix, error=0.5)
    # Where t is 0 the answer above is wrong by the whole velocity: it must not count.
    np.testing.assert_allclose(objective.loss({}, BATCH, call(2))[0], 0.25, rtol=1e-4)


def test_prompts_are_dropped_at_the_rate_asked_for():
    tokens = jnp.broadcast_to(BATCH["tokens"][:1], (4000, 64))
    kept = OBJECTIVE._drop(tokens, jax.random.key(0))
    dropped = np.asarray(kept[:, 0] == NULL)
    assert abs(dropped.mean() - OBJECTIVE.drop_text) < 0.02  # four standard deviations
    assert not kept[dropped, 1:].any()
    np.testing.assert_array_equal(kept[~dropped], tokens[~dropped])


def test_equal_keys_give_equal_losses_and_other_keys_others():
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0))
    loss = jax.jit(lambda call: OBJECTIVE.loss(params, BATCH, call)[0])
    one, same, other = (float(loss(call(seed))) for seed in (3, 3, 4))
    assert one == same != other
    assert 1.0 < one < 4.0  # the velocity of noise and standardised latents has variance 2


def test_operations_are_those_of_the_products_in_the_model():
    shapes = jax.eval_shape(OBJECTIVE.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *SHAPE[1:]), jnp.float32)
    t = jax.ShapeDtypeStruct((1, SHAPE[1]), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    counted = product_flops(OBJECTIVE.predict, shapes, x, t, tokens)
    # The text encoder, the embeddings and the ends come on top of the layers.
    assert 1.0 < 3.0 * counted / OBJECTIVE.flops_per_step(1) < 2.0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: a @ b, 2 * 3 * 4 * 5),
        (lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0.0, None, length=7)[1], 7 * 120),
        (lambda a, b: jax.jit(jnp.matmul)(a, b) + jnp.exp(a @ b), 2 * 120),
    ],
)
def test_products_are_counted_wherever_they_are(function, expected):
    assert product_flops(function, jnp.zeros((3, 4)), jnp.zeros((4, 5))) == expected


def test_convolutions_are_counted():
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    assert product_flops(convolve, x, kernel) == 2 * (2 * 8 * 8 * 5) * 27
