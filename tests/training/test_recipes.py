"""Recipes of the package: what holds before any of them is run."""

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import FrameCausal
from jvdm.configs import (
    arlon,
    art_v,
    lingen,
    my_videos,
    nano,
    nano_vae,
    nfd,
    reader,
    streamdit,
    tiny_t2v,
    tiny_t2v_causal,
    vae,
    vin,
)
from jvdm.configs import vae_decoder as decoder
from jvdm.experiment import describe
from jvdm.weights.folder import EMBEDDED, read_manifest

SMALL = (nano, nano_vae, nfd, streamdit, arlon, art_v, vin, lingen)
RECIPES = (*SMALL, my_videos, reader, tiny_t2v, tiny_t2v_causal, vae, decoder)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__.split(".")[-1])
def test_a_recipe_is_a_value(recipe):
    assert describe(recipe.config()) == describe(recipe.config())
    start = recipe.config().start_from
    assert start is None or read_manifest(start).family == "tiny_t2v"


def test_training_of_the_decoder_does_not_move_what_has_no_gradient():
    """Decay of weights would: the encoder's bits, and so all latents, must stay."""
    recipe = decoder.config()
    transform = recipe.optimizer.build(recipe.num_steps)
    params = {"encoder": {"kernel": jnp.ones((3, 3))}, "decoder": {"kernel": jnp.ones((3, 3))}}
    gradient = {"encoder": {"kernel": jnp.zeros((3, 3))}, "decoder": {"kernel": jnp.ones((3, 3))}}
    state = transform.init(params)
    for _ in range(3):
        updates, state = transform.update(gradient, state, params)
    assert not np.any(updates["encoder"]["kernel"])
    assert np.all(np.asarray(updates["decoder"]["kernel"]) < 0)
    assert recipe.objective.decoder_only


def test_the_causal_recipe_changes_how_the_shipped_network_attends_and_nothing_that_has_weights():
    model = tiny_t2v_causal.config().objective.system.model
    assert model.policy == FrameCausal()
    shipped = read_manifest(EMBEDDED / "tiny_t2v").component("model")
    assert model.clone(policy=shipped.policy, remat=shipped.remat, unroll=1) == shipped
