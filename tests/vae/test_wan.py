"""WanVAE: the numbers of the reference, any division in time equal to the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ShapeError, WeightsError
from jvdm.vae import conv, tiling, wan
from jvdm.vae import wan_published as published
from jvdm.vae.wan import WanVAE
from jvdm.weights.convert import converted
from pallas_kernels.convolution import api
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

    run = jax.jit(both, compiler_options=QUICK)
    posterior, frames = run(tree, video, latents)
    moments = jnp.concatenate(posterior, -1).transpose(0, 4, 1, 2, 3)
    assert off(moments, stored.outputs["moments"]) < 2e-5
    made = np.clip(2 * frames - 1, -1, 1).transpose(0, 4, 1, 2, 3)
    assert off(made, stored.outputs["frames"]) < 5e-5
    # The first frame of a still is not brighter than the weights make it, and neither is the last.
    _, frames = run(tree, video, jnp.full_like(latents, 0.5))
    still = np.clip(2 * frames - 1, -1, 1).mean((0, 2, 3, 4))
    np.testing.assert_allclose(still, stored.outputs["still"], rtol=0, atol=2e-6)


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


@functools.cache
def pieces(version):
    """An autoencoder with little reach, its parameters, frames and latents of odd sizes."""
    vae = WanVAE(latent_channels=2, width=4, multiples=(1, 1), blocks=0, time=(True,))
    vae = vae.clone(dtype="float32")
    vae = vae if version == "2.1" else vae.clone(patch=2, around=True)
    rng, (rows, columns) = np.random.default_rng(7), (19, 13)
    frames = rng.random((1, vae.num_frames(3), *(np.array([rows, columns]) * vae.strides[1]), 3))
    latents = rng.normal(size=(1, 3, rows, columns, 2)).astype(np.float32)
    params = drawn(vae.init, jax.random.key(1), jnp.zeros((1, 1, 8, 8, 3)))["params"]
    return vae, params, frames.astype(np.float32), latents


@pytest.mark.parametrize("version", TINIES)
def test_tiles_are_the_whole(version):
    """The last ones are a cell high; attention in the middle sees the whole frame all the same."""
    vae, params, frames, latents = pieces(version)
    assert len(tiling.make_tiling((19, 13), (6, 6), vae.decoder_reach).tiles) == 4
    chunk = {"2.1": 3, "2.2": 2}[version]  # latent frames: all, or two and one

    def whole_of(method, x):
        run = functools.partial(vae.apply, method=method)
        return jax.jit(run, compiler_options=QUICK)({"params": params}, x)

    whole = whole_of("decode", latents)
    made = list(tiling.decode(vae, params, latents, tile=(6, 6), chunk=chunk))
    assert sum(piece.shape[1] for piece in made) == 5 and len(made) == 4 - chunk
    np.testing.assert_allclose(np.concatenate(made, 1), whole, atol=2e-5)
    # Tiles cost their borders: a frame stays whole as long as a chunk of it is no large video.
    assert tiling.pieces(WanVAE(), (1, 99, 90, 160)) == ((90, 160), 1)
    assert tiling.pieces(WanVAE(), (1, 99, 180, 320)) == (WanVAE.tile, 4)
    whole = whole_of("encode", frames)
    made = tiling.encode(vae, params, frames, tile=(6, 6), chunk=chunk)
    for part, expected in zip(made, whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=2e-5)


@pytest.mark.parametrize("version", TINIES)
def test_reach_is_what_convolutions_see(version):
    """A change at a corner changes what is that far, and nothing farther, in both directions."""
    vae, params, frames, latents = pieces(version)
    side = vae.strides[1]
    cases = (("encode_cells", frames, side, vae.encoder_reach, 1),)
    features = np.zeros((1, 3, 19, 13, 4), np.float32) + latents[..., :1]
    cases += (("decode_cells", features, 1, vae.decoder_reach, side),)
    for method, x, read, reach, written in cases:
        run = jax.jit(functools.partial(vae.apply, method=method), compiler_options=QUICK)
        cell = 9
        changed = x.copy()
        changed[:, :, cell * read : (cell + 1) * read] += 1.0
        before, after = (np.asarray(run({"params": params}, y, None)[0]) for y in (x, changed))
        rows = np.flatnonzero(np.abs(after - before).max((0, 1, 3, 4)) > 1e-6) // written
        assert cell - reach <= rows.min() and rows.max() <= cell + reach
        assert reach - 1 <= max(cell - rows.min(), rows.max() - cell)


def test_sizes_are_those_of_its_levels():
    assert WanVAE().strides == (4, 8, 8) and VAES["2.1"].strides == (2, 4, 4)
    assert VAES["2.2"].strides == (2, 8, 8)
    with pytest.raises(ShapeError, match="num_frames is 6; it must be 2n"):
        VAES["2.1"].apply({}, jnp.zeros((1, 6, 16, 16, 3)), method="encode")
    with pytest.raises(ShapeError, match="latents have 5 channels"):
        VAES["2.1"].apply({}, jnp.zeros((1, 1, 2, 2, 5)), method="decode")


def test_a_kernel_for_hopper_convolves_alone_what_it_can(monkeypatch):
    """Ten of the decoder: two of each of four blocks, and the last of frames and those before."""
    monkeypatch.setattr(api, "backend", lambda: "gpu")
    monkeypatch.setattr("pallas_kernels.attention.mosaic_gpu.capability", lambda: "9.0")
    monkeypatch.setattr(api, "_processors", lambda: 132)
    vae = WanVAE(latent_channels=4, width=96, multiples=(1, 2), blocks=0, time=(True,))
    params = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))
    decode = functools.partial(vae.apply, method="decode_chunk")
    latents = jnp.zeros((1, 2, 8, 8, 4))
    _, carry = jax.eval_shape(decode, params, latents, None)

    def calls():
        traced = jax.jit(lambda *given: decode(*given)).trace(params, latents, carry)
        return traced.lower(lowering_platforms=("cuda",)).as_text().count("call @_launched")

    assert calls() == 10
    # What is divided over devices is for XLA, which divides its own operations alone.
    monkeypatch.setattr(conv, "used", lambda: "a mesh")
    assert calls() == 0


@pytest.mark.parametrize(("mesh", "axes"), [(None, 2), ("a mesh", 5)])
def test_cells_that_devices_share_keep_their_axes(mesh, axes, monkeypatch):
    monkeypatch.setattr(wan, "used", lambda: mesh)
    norm = wan.Norm(8).bind({"params": {"gain": jnp.ones(8)}})
    equations = jax.make_jaxpr(norm.active)(jnp.zeros((1, 2, 4, 4, 8))).eqns
    (summed,) = (part for part in equations if part.primitive.name == "reduce_sum")
    assert summed.invars[0].aval.ndim == axes


def test_the_autoencoder_of_another_version_is_refused():
    with pytest.raises(WeightsError, match="with attn_scales"):
        published.vae({**VERSIONS["2.1"].config, "attn_scales": [1.0]})
