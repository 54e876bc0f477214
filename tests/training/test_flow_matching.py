"""The video model's objective: exact cases, masks, prompts, operations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import nano
from jvdm.keys import named
from jvdm.samplers import MaskedPlaces
from jvdm.samplers.loss_weights import FusedSNR, Unweighted
from jvdm.samplers.timesteps import CleanPrefix, Synchronous, TrainTimes
from jvdm.training.flow_matching import regression, some_replaced
from jvdm.training.objective import TrainCall
from jvdm.world.vocabulary import NULL
from tests.generate.nano import drawn

OBJECTIVE: Any = nano.config().objective
SHAPE = (4, 3, 8, 8, 8)
BATCH = {
    "latents": jax.random.normal(jax.random.key(0), SHAPE),
    "tokens": jnp.full((4, 64), 0, jnp.int32).at[:, :3].set(jnp.arange(5, 8)),
}


def call(seed):
    return TrainCall(jnp.int32(0), jax.random.key(seed), {}, {})


@dataclasses.dataclass(frozen=True)
class Known(type(OBJECTIVE)):
    """An objective whose 'network' answers with a given error per frame."""

    error: Any = 0.0

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


def test_places_that_are_given_are_shown_clean_and_do_not_count():
    """The answer is wrong by 3 where a place is given, and by .5 elsewhere."""
    clean, masks = BATCH["latents"].astype(jnp.float32), MaskedPlaces(share=1.0, margin=1, patch=1)
    key, seen = jax.random.key(7), []
    made = masks(named(key, "masks"), *clean.shape[:4])[..., None]
    noise = jax.random.normal(named(key, "noise"), clean.shape)

    def predict(x, t):
        seen.extend([x, t])
        return noise - clean + jnp.where(made, 0.5, 3.0)

    found = regression(OBJECTIVE.system, predict, clean, Synchronous(), Unweighted(), key, masks)
    np.testing.assert_allclose(found, 0.25, rtol=1e-4)
    shown, t = seen
    np.testing.assert_array_equal(jnp.where(made, 0, shown), jnp.where(made, 0, clean))
    assert (jnp.abs(shown - clean)[jnp.broadcast_to(made, clean.shape)] > 0).mean() > 0.99
    whole = ~np.asarray(made.any((2, 3, 4)))
    assert whole.any() and (np.asarray(t)[whole] == 0).all() and (np.asarray(t)[~whole] > 0).all()


def test_prompts_are_dropped_at_the_rate_asked_for():
    tokens = jnp.broadcast_to(BATCH["tokens"][:1], (4000, 64))
    nothing, share = jnp.asarray(OBJECTIVE.system.text.read(("",))[0]), OBJECTIVE.drop_text
    kept = some_replaced(tokens, nothing, share, jax.random.key(0))
    dropped = np.asarray(kept[:, 0] == NULL)
    assert abs(dropped.mean() - share) < 0.02  # four standard deviations
    assert not kept[dropped, 1:].any()
    np.testing.assert_array_equal(kept[~dropped], tokens[~dropped])


def test_equal_keys_give_equal_losses_and_other_keys_others():
    params = drawn(OBJECTIVE.init, jax.random.key(0))
    loss = jax.jit(lambda call: OBJECTIVE.loss(params, BATCH, call)[0])
    one, same, other = (float(loss(call(seed))) for seed in (3, 3, 4))
    assert one == same != other
    assert 1.0 < one < 4.0  # the velocity of noise and standardised latents has variance 2


def asked(seed, **changes):
    """What the network is shown of 64 equal clips: noise, levels, and which prompts are gone."""
    clean = jnp.ones((64, 3, 2, 2, 8))
    tokens = jnp.broadcast_to(BATCH["tokens"][:1], (64, 64))
    seen = []

    class Shown(type(OBJECTIVE)):
        def predict(self, params, x, t, tokens):
            wide = t[:, :, None, None, None]
            seen.extend([(x - (1 - wide) * clean) / wide, t, tokens])
            return x

    fields = {f.name: getattr(OBJECTIVE, f.name) for f in dataclasses.fields(OBJECTIVE)}
    Shown(**{**fields, "rows": Synchronous(), **changes}).loss(
        {}, {"latents": clean, "tokens": tokens}, call(seed)
    )
    noise, t, told = map(np.asarray, seen)
    gone = told[:, 0] == NULL
    assert not told[gone, 1:].any() and (told[~gone] == np.asarray(tokens)[~gone]).all()
    return noise, t, gone


def test_noise_levels_and_lost_prompts_are_drawn_anew_for_every_key():
    one, other = asked(1, drop_text=0.5), asked(2, drop_text=0.5)
    for left, right in zip(one, other, strict=True):
        assert (left != right).mean() > 0.3
    correlations = np.corrcoef(np.concatenate([one[0].reshape(64, -1), other[0].reshape(64, -1)]))
    assert np.abs(correlations - np.eye(128)).max() < 0.6  # 96 numbers a clip: six deviations


def test_the_loss_drops_prompts_at_the_rate_asked_for():
    assert [asked(1, drop_text=share)[2].sum() for share in (0.0, 1.0)] == [0, 64]
    assert 16 < asked(1, drop_text=0.5)[2].sum() < 48  # four standard deviations


def test_a_batch_of_context_alone_teaches_nothing():
    def nothing(key, batch, latent_frames):
        return TrainTimes(jnp.zeros((batch, latent_frames)), jnp.zeros((batch, latent_frames)))

    assert known(rows=nothing, error=0.5).loss({}, BATCH, call(1))[0] == 0


@pytest.mark.parametrize("weights", [Unweighted(), FusedSNR()], ids=str)
def test_the_loss_has_no_slope_in_frames_that_do_not_count(weights):
    times = jax.jit(lambda key: CleanPrefix()(key, *SHAPE[:2]))(jax.random.key(0))
    objective = known(rows=lambda *_: times, weights=weights)

    def loss(error):
        return dataclasses.replace(objective, error=error).loss({}, BATCH, call(2))[0]

    error = jnp.full((*SHAPE[:2], 1, 1, 1), 0.5)
    slope = jax.jit(jax.grad(loss))(error)[..., 0, 0, 0]
    counted = np.asarray(times.loss_mask) > 0
    assert counted.any() and not counted.all()
    np.testing.assert_array_equal(np.asarray(slope) != 0, counted)
    weight = weights(OBJECTIVE.system.process, OBJECTIVE.system.prediction, times.t)
    # The slope of a square of error .5 is its weight over the count.
    np.testing.assert_allclose(slope[counted], weight[counted] / counted.sum(), rtol=2e-3)
