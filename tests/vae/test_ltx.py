"""LTXVAE: the numbers of the reference, pieces of the encoder, noise that is addressed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ShapeError
from jvdm.vae import tiling
from jvdm.vae.ltx_published import vae, vae_names
from jvdm.weights.convert import converted
from jvdm.weights.safetensors import flatten
from tests.parity.references import Reference, inputs, off
from tests.vae.nano import QUICK

VERSIONS = ("ltx_vae_0_9_0", "ltx_vae_0_9_1", "ltx_vae_0_9_5")
LEVEL = 300.0  # as in parity/test_ltx
FRAMES, LATENTS = inputs((1, 3, 9, 16, 32), (1, 8, 2, 1, 2))
FRAMES = jnp.asarray(np.tanh(FRAMES).transpose(0, 2, 3, 4, 1) + 1) / 2
LATENTS = jnp.asarray(LATENTS.transpose(0, 2, 3, 4, 1))


@functools.cache
def network(name):
    """Returns the autoencoder of a stored reference and its parameters."""
    reference = Reference(name)
    model = vae(reference.config, LEVEL, 0.0).clone(dtype="float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), FRAMES[:, :1])["params"]
    tree, _ = converted(vae_names(model), reference.weights, shapes, "a folder")
    return model, jax.tree.map(jnp.asarray, tree)


@functools.cache
def runner(name, method, **changes):
    model, params = network(name)
    run = functools.partial(dataclasses.replace(model, **changes).apply, method=method)
    return functools.partial(jax.jit(run, compiler_options=QUICK), {"params": params})


@pytest.mark.parametrize("name", VERSIONS)
def test_the_reference_is_met(name):
    outputs = Reference(name).outputs
    if name != "ltx_vae_0_9_1":  # its encoder is that of 0.9.0
        posterior = runner(name, "encode")(FRAMES)
        moments = np.asarray(jnp.concatenate(posterior, -1)).transpose(0, 4, 1, 2, 3)
        assert off(moments[:, :8], outputs["moments"][:, :8]) < 2e-5
        assert off(moments[:, 8:], outputs["moments"][:, 8:9]) < 2e-5
    frames = 2 * runner(name, "decode")(LATENTS) - 1
    assert off(frames.transpose(0, 4, 1, 2, 3), outputs["frames"]) < 5e-5


@pytest.mark.parametrize("name", ["ltx_vae_0_9_0", "ltx_vae_0_9_5"])
def test_pieces_are_encoded_to_the_whole(name):
    video = jnp.concatenate([FRAMES, FRAMES[:, :-1] ** 2], 1)
    step, done, carry, means = runner(name, "encode_chunk"), 0, None, []
    for count in (1, 8, 8):
        posterior, carry = step(video[:, done : done + count], carry)
        means.append(posterior.mean)
        done += count
    whole = runner(name, "encode")(video).mean
    np.testing.assert_allclose(np.concatenate(means, 1), whole, atol=1e-5)


@functools.cache
def whole(name, count):
    """Returns latents and what they decode to, with noise, at once."""
    (z,) = inputs((2, count, 1, 2, 8), seed=count)
    return z, np.asarray(runner(name, "decode", noise=0.3)(z))


@pytest.mark.parametrize(
    ("name", "count", "chunk"),
    [
        *(("ltx_vae_0_9_1", count, 2) for count in (1, 3, 6, 9, 10)),
        *(("ltx_vae_0_9_0", 5, chunk) for chunk in (1, 3, 5)),
        ("ltx_vae_0_9_5", 4, 3),
    ],
)
def test_pieces_are_decoded_to_the_whole(name, count, chunk):
    """To the last frame, whatever is left for the last piece; noise is that of its place."""
    model, params = network(name)
    z, expected = whole(name, count)
    pieces = list(tiling.decode(model.clone(noise=0.3), params, z, chunk=chunk))
    assert max(piece.shape[1] for piece in pieces) <= 8 * chunk
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, atol=2e-5)


def test_a_level_and_noise_change_what_is_decoded_but_never_from_run_to_run():
    name = "ltx_vae_0_9_5"
    plain, other = runner(name, "decode")(LATENTS), runner(name, "decode", level=5.0)(LATENTS)
    assert off(other, plain) > 1e-2
    noisy = runner(name, "decode", noise=0.5)
    twice = noisy(jnp.concatenate([LATENTS, LATENTS]))
    assert off(twice[:1], plain) > 1e-2
    np.testing.assert_array_equal(twice[0], twice[1])


def test_sizes_are_those_of_its_levels():
    model, _ = network("ltx_vae_0_9_5")
    assert model.strides == (8, 16, 16)
    assert vae(Reference("ltx_vae_0_9_0").config, 0.05, 0.0).strides == (8, 16, 16)
    assert not hasattr(model, "decode_chunk")
    with pytest.raises(ShapeError, match="num_frames is 8; it must be 8n"):
        model.apply({}, jnp.zeros((1, 8, 16, 16, 3)), method="encode")
    with pytest.raises(ShapeError, match="latents have 5 channels"):
        model.apply({}, jnp.zeros((1, 1, 2, 2, 5)), method="decode")


FULL = {
    "latent_channels": 128,
    "patch_size": 4,
    "decoder_causal": False,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": [4, 3, 3, 3, 4],
    "spatio_temporal_scaling": [True, True, True, False],
}
TOLD = {
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True] * 3,
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
}
LATER = {
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [4, 6, 6, 2, 2],
    "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "decoder_layers_per_block": [5] * 4,
    "decoder_inject_noise": [False] * 4,
}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (FULL, 419_193_649),
        ({**FULL, **TOLD}, 934_976_434),
        ({**FULL, **TOLD, **LATER}, 1_246_913_522),
    ],
)
def test_the_published_sizes_have_the_published_number_of_parameters(config, count):
    """That of 0.9.0 has no fields of the decoder: what they are then is known."""
    model = vae(config, 0.05, 0.025)
    assert model.strides == (8, 32, 32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))["params"]
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    assert sorted(rule.ours for rule in vae_names(model).rules) == sorted(flatten(shapes))
