import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ShapeError
from jvdm.vae.video_vae import Posterior, VideoVAE
from tests.vae.nano import (
    NANO,
    QUICK,
    assert_equal_but_rounding,
    bare,
    jitted,
    latents,
    params,
    video,
)

CUTS = (1, 3)  # of five latent frames: the first alone, then two and two


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 24, 8), (9, 8, 16)])
def test_any_length_and_size_comes_back_with_its_shape(num_frames, height, width):
    frames = video(num_frames, height, width)
    cells = NANO.latent_frames(num_frames), *NANO.latent_size(height, width)
    posterior = jitted("encode")(frames)
    assert posterior.mean.shape == (1, *cells, NANO.latent_channels)
    assert posterior.log_variance.shape == (1, *cells, 1)
    decoded = jitted("decode")(posterior.mean)
    assert decoded.shape == frames.shape
    assert np.isfinite(decoded).all()
    assert NANO.num_frames(cells[0]) == num_frames


def test_the_first_frame_is_coded_alone():
    frames = video(9, 8, 16)
    assert_equal_but_rounding(
        jitted("encode")(frames[:, :1]).mean, jitted("encode")(frames).mean[:, :1]
    )
    z = latents(3, 1, 2)
    assert_equal_but_rounding(jitted("decode")(z[:, :1]), jitted("decode")(z)[:, :1])


def test_encoding_in_chunks_equals_the_whole():
    frames, pieces, carry = video(17, 16, 24, batch=2), [], None
    for chunk in jnp.split(frames, [NANO.num_frames(cut) for cut in CUTS], axis=1):
        posterior, carry = jitted("encode_chunk")(chunk, carry)
        pieces.append(posterior)
    whole = jitted("encode")(frames)
    for name in Posterior._fields:
        joined = jnp.concatenate([getattr(piece, name) for piece in pieces], axis=1)
        assert_equal_but_rounding(joined, getattr(whole, name))


def test_decoding_in_chunks_equals_the_whole():
    z, pieces, carry = latents(5, 2, 3, batch=2), [], None
    for chunk in jnp.split(z, CUTS, axis=1):
        frames, carry = jitted("decode_chunk")(chunk, carry)
        pieces.append(frames)
    assert_equal_but_rounding(jnp.concatenate(pieces, axis=1), jitted("decode")(z))


def _depends_on(function, x, outputs):
    """Which frames of `x` each output frame depends on: bool `[outputs, frames]`."""

    def gradient(x, frame):
        _, pullback = jax.vjp(function, x)
        return pullback(jax.nn.one_hot(frame, outputs))[0]

    gradients = jax.jit(jax.vmap(gradient, in_axes=(None, 0)), compiler_options=QUICK)(
        x, jnp.arange(outputs)
    )
    return np.not_equal(gradients, 0).any(axis=(1, 3, 4, 5))


def test_decoded_frames_depend_on_no_later_latent():
    z = latents(3, 1, 2)
    decode = functools.partial(bare("decode"), params())
    depends = _depends_on(lambda z: decode(z).sum((0, 2, 3, 4)), z, NANO.num_frames(3))
    newest = [int(np.flatnonzero(row).max()) for row in depends]
    assert newest == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert depends[-1, 0]  # and memory reaches back: the test would see a leak


def test_latents_depend_on_no_later_frame():
    encode = functools.partial(bare("encode"), params())
    depends = _depends_on(lambda x: encode(x).mean.sum((0, 2, 3, 4)), video(9, 8, 16), 3)
    newest = [int(np.flatnonzero(row).max()) for row in depends]
    assert newest == [0, 4, 8]
    assert depends[-1, 0]


BLOCKS = [(1, 1, 1, 1), (0, 1, 2, 0)]


@pytest.mark.parametrize("blocks", BLOCKS)
def test_decoder_reach_is_the_receptive_field(blocks):
    vae = NANO.clone(decoder_blocks=blocks)
    middle = vae.decoder_reach + 1  # one cell more than needed on every side
    decode = functools.partial(bare("decode", vae), params(vae))

    def total(z):
        pixels = slice(8 * middle, 8 * middle + 8)
        return decode(z)[:, :, pixels, pixels].sum()

    z = latents(2, 2 * middle + 1, 2 * middle + 1)
    seen = np.not_equal(jax.jit(jax.grad(total), compiler_options=QUICK)(z), 0).any(axis=(0, 1, 4))
    expected = np.pad(np.ones((2 * middle - 1, 2 * middle - 1), bool), 1)
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_encoder_reach_is_the_receptive_field(blocks):
    vae = NANO.clone(encoder_blocks=blocks)
    middle = vae.encoder_reach + 1
    side = 2 * middle + 1
    encode = functools.partial(bare("encode", vae), params(vae))

    def total(x):
        return encode(x).mean[:, :, middle, middle].sum()

    seen = np.not_equal(
        jax.jit(jax.grad(total), compiler_options=QUICK)(video(5, 8 * side, 8 * side)), 0
    )
    seen = seen.any(axis=(0, 1, 4)).reshape(side, 8, side, 8).any(axis=(1, 3))
    np.testing.assert_array_equal(seen, np.pad(np.ones((side - 2, side - 2), bool), 1))


def test_parameters_are_float32_and_the_work_is_bfloat16():
    vae, frames = NANO.clone(dtype=jnp.bfloat16), video(9, 8, 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params(vae))} == {jnp.dtype(jnp.float32)}
    low, high = jitted("encode", vae)(frames), jitted("encode")(frames)
    assert low.mean.dtype == low.log_variance.dtype == jnp.float32
    np.testing.assert_allclose(low.mean, high.mean, atol=0.05)  # 14 layers of 8 bits
    assert float(jnp.abs(low.mean - high.mean).max()) > 0
    assert jitted("decode", vae)(low.mean).dtype == jnp.float32

    text = str(jax.make_jaxpr(lambda p, x: vae.apply({"params": p}, x))(params(), frames))
    products = re.findall(r":(\w+)\[[^]]*\] = (?:conv_general_dilated|dot_general)", text)
    assert len(products) > 20 and set(products) == {"bf16"}


def test_default_size_and_parameters_that_depend_on_no_shape():
    key = jax.random.key(0)
    shapes = [
        jax.eval_shape(VideoVAE().init, key, jnp.zeros(shape))
        for shape in [(1, 1, 8, 8, 3), (2, 9, 16, 24, 3)]
    ]
    assert shapes[0] == shapes[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes[0])) == 9_607_873


def test_posterior_samples_have_its_mean_and_variance():
    posterior = Posterior(jnp.full((1, 4, 16, 16, 4), 2.0), jnp.full((1, 4, 16, 16, 1), -1.0))
    sample = posterior.sample(jax.random.key(0))
    assert float(sample.mean()) == pytest.approx(2.0, abs=4 * np.exp(-0.5) / 64)
    assert float(sample.std()) == pytest.approx(np.exp(-0.5), rel=0.05)


def test_divergence_is_zero_for_the_standard_normal_alone():
    zeros = jnp.zeros((1, 1, 2, 2, 4)), jnp.zeros((1, 1, 2, 2, 1))
    assert float(Posterior(*zeros).divergence()) == 0
    assert float(Posterior(zeros[0] + 1, zeros[1]).divergence()) == pytest.approx(0.5)
    assert float(Posterior(zeros[0], zeros[1] - 1).divergence()) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NANO.latent_frames(32), r"num_frames is 32; .*4n \+ 1; .*: 29 and 33"),
        (lambda: NANO.latent_frames(0), "num_frames is 0; .*that fit: 1$"),
        (lambda: NANO.latent_size(130, 64), "height is 130; .* 8; .*: 128 and 136"),
        (lambda: NANO.latent_size(64, 3), "width is 3; .*that fit: 8$"),
        (lambda: NANO.num_frames(0), "latent_frames is 0"),
        (lambda: jitted("encode")(video(6, 8, 8)), "num_frames is 6; .*: 5 and 9"),
        (lambda: jitted("encode")(video(5, 12, 8)), "height is 12; .*: 8 and 16"),
        (lambda: jitted("decode")(latents(1, 1, 1)[..., :3]), "3 channels; .* has 4"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_a_later_chunk_has_whole_groups_of_four_frames():
    _, carry = jitted("encode_chunk")(video(1, 8, 8), None)
    with pytest.raises(ShapeError, match="later chunk is 5; .*: 4 and 8"):
        jitted("encode_chunk")(video(5, 8, 8), carry)
