"""Blocks of a long video: stages of layers have the bits of one device, a block has the rest."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import Dense, NextBlock
from jvdm.errors import ConfigError
from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.models.blockwise import BlockWise, check_mesh
from jvdm.parallel import mesh_of, place
from jvdm.pipeline import programs
from jvdm.samplers import (
    Call,
    ClassifierFree,
    DPMSolverPP2M,
    ShiftedLevels,
    StaircaseMatrix,
    SynchronousMatrix,
    validate,
)
from jvdm.samplers.staircase import order
from jvdm.system import OF_A_ROW, Sampling, System
from tests.generate.nano import TEXT, VAE, drawn

SIZES: Any = {"width": 32, "depth": 2, "latent_channels": 4, "head_dim": 16, "dtype": "float32"}
DIT = VideoDiT(**SIZES, rotary_axes=(4, 6, 6), policy=NextBlock(2, 2))
FRAMES = 8  # three blocks of two, and the context of the first
LEVELS = ShiftedLevels(2, 2.0)()
STATES = jax.random.normal(jax.random.key(2), (2, 5, 24))
TOLD = Conditions(TextStates(STATES, jnp.array([5, 3])))


@functools.cache
def parameters(depth):
    told = Conditions(TextStates(STATES[:1], jnp.array([5])))
    frame = jnp.zeros((1, 1, 4, 4, 4)), Call.at(jnp.zeros((1, 1)))
    params = drawn(DIT.clone(depth=depth).init, jax.random.key(0), *frame, told)["params"]
    return jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(3), leaf.shape), params
    )


def made(model, matrix, mesh=None, noise=None):
    """The latents of a run with a solver of two steps and guidance."""
    rules = Sampling(None, None, solver=DPMSolverPP2M(), guidance=ClassifierFree(2.0))
    system = System(TEXT, model, VAE, sampling=rules).only("model", *OF_A_ROW, "noise")
    params, shape = {"model": parameters(model.depth)}, (1, matrix.latent_frames, 4, 4, 4)
    params = params if mesh is None else place(params, mesh)
    state = programs.begin(system, matrix, np.array([3], np.uint32), noise, (), shape, mesh)
    for row in range(matrix.num_rows):
        state = programs.denoise_row(system, params, TOLD, matrix, state, np.int32(row), mesh)
    return np.asarray(state.x)


MATRIX = StaircaseMatrix(2, 2)(LEVELS, FRAMES)


@functools.cache
def alone(depth):
    return made(BlockWise(DIT.clone(depth=depth), 2, 2), MATRIX)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "mesh"), [(2, "stage=2"), (2, "stage=2,branch=2"), (4, "stage=4")]
)
def test_stages_have_the_bits_of_one_device(depth, mesh):
    """Three blocks: two stages have fewer of them at the ends, four at all times."""
    devices = jax.devices()[: 2 if mesh == "stage=2" else 4]
    found = made(BlockWise(DIT.clone(depth=depth), 2, 2), MATRIX, mesh_of(mesh, devices))
    np.testing.assert_array_equal(found, alone(depth))
    assert np.isfinite(found).all()


def test_a_single_block_is_a_video_made_at_once():
    network = DIT.clone(policy=Dense())
    found = made(BlockWise(network, 2, 0), StaircaseMatrix(2, 0)(LEVELS, 2))
    np.testing.assert_array_equal(found, made(network, SynchronousMatrix()(LEVELS, 2)))


def test_a_block_reads_the_first_frames_of_the_next():
    """The second block reads keys of the third; the first was done before the third came."""
    noise = jax.random.normal(jax.random.key(5), (1, FRAMES, 4, 4, 4))
    one, other = (
        made(BlockWise(DIT, 2, 2), MATRIX, noise=x) for x in (noise, noise.at[:, 6:].add(1.0))
    )
    moved = np.abs(one - other).max((0, 2, 3, 4))
    assert (moved[6:] > 0.1).all() and (moved[4:6] > 1e-4).all()
    assert not moved[:4].any()


def test_every_block_steps_once_in_an_iteration_from_noise_to_clean():
    assert order(3, 2) == [0, 1, 0, 2, 1, 2]
    matrix = validate(StaircaseMatrix(2, 2)(LEVELS, FRAMES))
    index = np.asarray(matrix.index)
    assert matrix.num_rows == 6 and (index[-1] == 2).all()
    moving = index[1:] != index[:-1]
    assert [tuple(np.flatnonzero(row)) for row in moving[:3]] == [
        (0, 1, 2, 3),
        (4, 5),
        (0, 1, 2, 3),
    ]
    # A block enters a step behind the one before it and stays so.
    assert (index[:, 3] - index[:, 4] <= 1).all() and (index[:, 3] >= index[:, 4]).all()
    with pytest.raises(ConfigError, match="use 8 or 10 latent frames"):
        StaircaseMatrix(2, 2)(LEVELS, 9)


def test_what_stages_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="alone"):
        check_mesh(mesh_of("stage=2,tensor=2"), 2)
    with pytest.raises(ConfigError, match="a window of 3 latent frames"):
        BlockWise(DIT, 1, 2).start(FRAMES, 4, 4)
    with pytest.raises(ConfigError, match="each has as many"):
        made(BlockWise(DIT, 2, 2), StaircaseMatrix(2, 2)(LEVELS, FRAMES), mesh_of("stage=4"))
