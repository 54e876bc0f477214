"""WanVAE: the numbers of the reference, any division in time equal to the whole."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ShapeError, WeightsError
from jvdm.vae import tiling
from jvdm.vae.wan import WanVAE
from jvdm.weights.convert import converted
from tests.parity.references import Reference, inputs, off
from tests.vae.nano import QUICK

wan = importlib.import_module("jvdm.configs.families.wan")
REFERENCE = Reference("wan_vae")
VAE = wan.vae(REFERENCE.config).clone(dtype="float32")
FRAMES, LATENTS = inputs((1, 3, 5, 8, 12), (1, 4, 3, 2, 3))
FRAMES = jnp.asarray(np.tanh(FRAMES).transpose(0, 2, 3, 4, 1) + 1) / 2
LATENTS = jnp.asarray(LATENTS.transpose(0, 2, 3, 4, 1))


@functools.cache
def parameters():
    shapes = jax.eval_shape(VAE.init, jax.random.key(0), FRAMES[:, :1])["params"]
    tree, _ = converted(wan.vae_names(VAE), REFERENCE.weights, shapes, "a folder")
    return jax.tree.map(jnp.asarray, tree)


def test_the_reference_is_met():
    def both(params, frames, latents):
        vae = VAE.bind({"params": params})
        return vae.encode(frames), vae.decode(latents)

    posterior, frames = jax.jit(both, compiler_options=QUICK)(parameters(), FRAMES, LATENTS)
    moments = jnp.concatenate(posterior, -1).transpose(0, 4, 1, 2, 3)
    assert off(moments, REFERENCE.outputs["moments"]) < 2e-5
    made = np.clip(2 * frames - 1, -1, 1).transpose(0, 4, 1, 2, 3)
    assert off(made, REFERENCE.outputs["frames"]) < 5e-5


# Frames are halved twice, and a level has as few convolutions as there can be.
TINY = WanVAE(latent_channels=2, width=4, multiples=(1, 1, 1), blocks=0, time=(True, True))
TINY = TINY.clone(dtype="float32")
LONG = 10  # latent frames
DIVISIONS = ((1,) * 10, (1, 2, 2, 2, 2, 1), (1, 3, 3, 3), (1, 5, 1, 3), (1, 2, 5, 2))
GIVEN = {
    "encode": jax.random.uniform(jax.random.key(3), (1, TINY.num_frames(LONG), 8, 12, 3)),
    "decode": jax.random.normal(jax.random.key(4), (1, LONG, 2, 3, 2)),
}


@functools.cache
def tiny():
    """Random parameters; drawn on the host, because `init` takes seconds to compile."""
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), GIVEN["encode"][:, :1])["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.1 if len(leaf.shape) == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(scale * rng.normal(size=leaf.shape) + (scale == 0.1), jnp.float32)

    return jax.tree.map(draw, shapes)


@functools.cache
def coder(method):
    run = functools.partial(TINY.apply, method=method)
    return functools.partial(jax.jit(run, compiler_options=QUICK), {"params": tiny()})


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_any_division_in_time_is_the_whole(method):
    """Also of any length: after each piece there is the beginning of the whole."""
    given, step = GIVEN[method], coder(f"{method}_chunk")
    lengths = TINY.prefix_of_latents if method == "encode" else int
    whole = jax.tree.leaves(coder(method)(given))
    for division in DIVISIONS if method == "decode" else DIVISIONS[:3]:
        pieces, carry, done = [], None, 0
        for count in division:
            piece = given[:, lengths(done) : lengths(done + count)]
            made, carry = step(piece, carry)
            pieces.append(jax.tree.leaves(made))
            done += count
        for joined, expected in zip(zip(*pieces, strict=True), whole, strict=True):
            np.testing.assert_allclose(np.concatenate(joined, 1), expected, atol=1e-5)


def test_a_frame_is_never_cut_into_tiles():
    """Its attention sees all cells, so that tiles would not be equal to the whole."""
    for reach in (VAE.encoder_reach, VAE.decoder_reach):
        tiles = tiling.make_tiling((90, 161), (16, 16), reach)  # the last tile would be a cell wide
        assert tiles.window == tiles.video and len(tiles.tiles) == 1


def test_sizes_are_those_of_its_levels():
    assert WanVAE().strides == (4, 8, 8) and VAE.strides == (2, 4, 4)
    with pytest.raises(ShapeError, match="num_frames is 6; it must be 2n"):
        VAE.apply({}, jnp.zeros((1, 6, 16, 16, 3)), method="encode")
    with pytest.raises(ShapeError, match="latents have 5 channels"):
        VAE.apply({}, jnp.zeros((1, 1, 2, 2, 5)), method="decode")


def test_the_autoencoder_of_another_version_is_refused():
    with pytest.raises(WeightsError, match="with is_residual, patch_size"):
        wan.vae({**REFERENCE.config, "is_residual": True, "patch_size": 2})
