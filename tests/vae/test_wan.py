"""WanVAE: the numbers of the reference, any division in time equal to the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ShapeError, WeightsError
from jvdm.vae import wan_published as published
from jvdm.vae.wan import WanVAE
from jvdm.weights.convert import converted
from tests.generate.nano import drawn
from tests.parity.references import Reference, inputs, off
from tests.vae.nano import QUICK

VERSIONS = {"2.1": Reference("wan_vae"), "2.2": Reference("wan_vae_2_2")}
VAES = {name: published.vae(stored.config) for name, stored in VERSIONS.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_reference_is_met(version):
    stored, vae = VERSIONS[version], VAES[version].clone(dtype="float32")
    side, channels = vae.strides[1], vae.latent_channels
    given = inputs((1, 3, 5, 2 * side, 3 * side), (1, channels, 3, 2, 3))
    video, latents = (jnp.asarray(x.transpose(0, 2, 3, 4, 1)) for x in given)
    video = (jnp.tanh(video) + 1) / 2
    shapes = jax.eval_shape(vae.init, jax.random.key(0), video[:, :1])["params"]
    tree, _ = converted(published.vae_names(vae), stored.weights, shapes, "a folder")

    def both(params, video, latents):
        bound = vae.bind({"params": params})
        return bound.encode(video), bound.decode(latents)

    posterior, frames = jax.jit(both, compiler_options=QUICK)(tree, video, latents)
    moments = jnp.concatenate(posterior, -1).transpose(0, 4, 1, 2, 3)
    assert off(moments, stored.outputs["moments"]) < 2e-5
    made = np.clip(2 * frames - 1, -1, 1).transpose(0, 4, 1, 2, 3)
    assert off(made, stored.outputs["frames"]) < 5e-5


# Frames are halved twice, and a level has as few convolutions as there can be.
TINY = WanVAE(latent_channels=2, width=4, multiples=(1, 1, 1), blocks=0, time=(True, True))
TINY = TINY.clone(dtype="float32")
TINIES = {"2.1": TINY, "2.2": TINY.clone(patch=2, around=True, decoder_width=8)}
LONG = 10  # latent frames
DIVISIONS = ((1,) * 10, (1, 2, 2, 2, 2, 1), (1, 3, 3, 3), (1, 5, 1, 3), (1, 2, 5, 2))
GIVEN = {
    "encode": jax.random.uniform(jax.random.key(3), (1, TINY.num_frames(LONG), 8, 16, 3)),
    "decode": jax.random.normal(jax.random.key(4), (1, LONG, 2, 3, 2)),
}


@functools.cache
def coder(version, method):
    vae = TINIES[version]
    params = drawn(vae.init, jax.random.key(0), GIVEN["encode"][:, :1])["params"]
    run = functools.partial(vae.apply, method=method)
    return functools.partial(jax.jit(run, compiler_options=QUICK), {"params": params})


@pytest.mark.parametrize("method", ["encode", "decode"])
@pytest.mark.parametrize("version", TINIES)
def test_any_division_in_time_is_the_whole(version, method):
    """Also of any length: after each piece there is the beginning of the whole."""
    given, step = GIVEN[method], coder(version, f"{method}_chunk")
    lengths = TINY.prefix_of_latents if method == "encode" else int
    whole = jax.tree.leaves(coder(version, method)(given))
    for division in DIVISIONS if (version, method) == ("2.1", "decode") else DIVISIONS[:2]:
        pieces, carry, done = [], None, 0
        for count in division:
            piece = given[:, lengths(done) : lengths(done + count)]
            made, carry = step(piece, carry)
            pieces.append(jax.tree.leaves(made))
            done += count
        for joined, expected in zip(zip(*pieces, strict=True), whole, strict=True):
            np.testing.assert_allclose(np.concatenate(joined, 1), expected, atol=1e-5)


def test_sizes_are_those_of_its_levels():
    assert WanVAE().strides == (4, 8, 8) and VAES["2.1"].strides == (2, 4, 4)
    assert VAES["2.2"].strides == (2, 8, 8)
    with pytest.raises(ShapeError, match="num_frames is 6; it must be 2n"):
        VAES["2.1"].apply({}, jnp.zeros((1, 6, 16, 16, 3)), method="encode")
    with pytest.raises(ShapeError, match="latents have 5 channels"):
        VAES["2.1"].apply({}, jnp.zeros((1, 1, 2, 2, 5)), method="decode")


def test_the_autoencoder_of_another_version_is_refused():
    with pytest.raises(WeightsError, match="with attn_scales"):
        published.vae({**VERSIONS["2.1"].config, "attn_scales": [1.0]})
