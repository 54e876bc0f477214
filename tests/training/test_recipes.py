"""Recipes of the package: what holds before any of them is run."""

import dataclasses
from typing import Any

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
    nfd_few_steps,
    reader,
    streamdit,
    streamdit_few_steps,
    tiny_t2v,
    tiny_t2v_causal,
    vae,
    vin,
)
from jvdm.configs import vae_decoder as decoder
from jvdm.experiment import describe
from jvdm.samplers import LagMatrix
from jvdm.values import from_data
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


@pytest.mark.parametrize(
    ("recipe", "matrix"), [(nfd_few_steps, LagMatrix(4, 1)), (streamdit_few_steps, LagMatrix(1, 2))]
)
def test_a_student_of_a_stream_makes_four_jumps_a_chunk_between_levels_of_its_teacher(
    recipe, matrix
):
    """One frame after the other, or so that every row finishes a chunk."""
    objective: Any = recipe.config().objective
    sampling = from_data(objective.rules["sampling"])
    assert sampling.matrix == matrix and len(sampling.levels()) == 5
    steps = objective.micro * (len(objective.edges) - 1)
    own = dataclasses.replace(objective.system.sampling.levels, num_steps=steps)()
    np.testing.assert_allclose(own[:: objective.micro], objective.edges, atol=1e-6)
    assert objective.teacher == str(recipe.config().start_from)
