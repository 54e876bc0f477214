import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm.fidelity import object_pixels
from jvdm.products import product_flops
from jvdm.training.autoencoder import AutoencoderWeights, autoencoder_loss, autoencoder_psnr
from jvdm.training.reconstruction import Reconstruction
from jvdm.world.scene import World
from tests.vae import nano
from tests.vae.nano import NANO


def _scene(num_frames=5):
    """A red square that moves over a grey ground."""
    frames = np.full((1, num_frames, 16, 16, 3), 0.5, np.float32)
    for n in range(num_frames):
        frames[:, n, 4:10, n : n + 6] = [0.9, 0.1, 0.1]
    return jnp.asarray(frames)


@pytest.fixture(scope="module")
def params():
    return nano.params()


_loss = jax.jit(autoencoder_loss, static_argnums=(0, 4), compiler_options=nano.QUICK)
_psnr = jax.jit(autoencoder_psnr, static_argnums=0, compiler_options=nano.QUICK)


def test_object_pixels_are_the_coloured_ones():
    expected = np.zeros((16, 16))
    expected[4:10, 0:6] = 1
    np.testing.assert_array_equal(object_pixels(_scene())[0, 0], expected)


def test_loss_is_the_weighted_sum_of_its_terms(params, key):
    loss, terms = _loss(NANO, params, _scene(), key)
    weights = dataclasses.asdict(AutoencoderWeights())
    del weights["object_pixels"]
    total = sum(weight * terms[name] for name, weight in weights.items())
    assert float(loss) == pytest.approx(float(total), rel=1e-6)
    assert all(np.isfinite(value) and value > 0 for value in terms.values())


def test_errors_on_objects_weigh_more(params, key):
    """Weights 1 and infinity are the means over all pixels and over objects."""
    frames = _scene()

    def square(weight):
        weights = AutoencoderWeights(object_pixels=weight)
        return float(_loss(NANO, params, frames, key, weights)[1]["square"])

    decoded = nano.jitted("decode")(nano.jitted("encode")(frames).sample(key))
    error = (decoded - frames) ** 2
    mask = np.asarray(object_pixels(frames))
    on, off = np.asarray(error)[mask].mean(-1), np.asarray(error)[~mask].mean(-1)
    expected = (3 * on.sum() + off.sum()) / (3 * on.size + off.size)
    assert square(3.0) == pytest.approx(float(expected), rel=1e-4)
    assert square(1.0) == pytest.approx(float(error.mean()), rel=1e-4)


def test_a_single_frame_has_no_flicker_and_a_finite_gradient(params, key):
    def loss(params):
        return autoencoder_loss(NANO, params, _scene(1), key)

    (value, terms), gradient = jax.jit(
        jax.value_and_grad(loss, has_aux=True), compiler_options=nano.QUICK
    )(params)
    assert np.isfinite(value) and terms["flicker"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_few_steps_lower_the_loss_and_raise_the_psnr(params, key):
    frames, optimizer = _scene(), optax.adam(3e-3)

    def step(carry, _):
        params, state = carry
        gradient, _ = jax.grad(autoencoder_loss, 1, has_aux=True)(NANO, params, frames, key)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    @functools.partial(jax.jit, compiler_options=nano.QUICK)
    def fit(params):
        (fitted, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=12)
        return fitted

    before, psnr_before = _loss(NANO, params, frames, key)[0], _psnr(NANO, params, frames)
    params = fit(params)
    after, psnr_after = _loss(NANO, params, frames, key)[0], _psnr(NANO, params, frames)
    assert after < 0.8 * before
    assert set(psnr_after) == {"whole", "object", "first_frame"}
    assert psnr_after["whole"] > psnr_before["whole"] + 1


@pytest.fixture(scope="module")
def blank(params):
    """Parameters whose output convolution is zero: every pixel is decoded as one half."""
    last = jax.tree.map(jnp.zeros_like, params["decoder"]["conv_out"])
    return {**params, "decoder": {**params["decoder"], "conv_out": last}}


def test_psnr_of_a_known_error(blank):
    psnr = _psnr(NANO, blank, _scene())
    error = np.mean(np.square([0.4, 0.4, 0.4]))
    assert float(psnr["object"]) == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert float(psnr["whole"]) == pytest.approx(-10 * np.log10(error * 36 / 256), abs=1e-3)


def test_differences_in_time_and_space_of_a_known_error(blank, key):
    """A square of 6 x 6 pixels, each off by .4, that is there in the last frame only."""
    frames = _scene().at[:, :4].set(0.5)
    terms = _loss(NANO, blank, frames, key)[1]
    # Of 4 x 16 x 16 differences in time 36 are .4; these weigh 3, as their later pixels do.
    assert float(terms["flicker"]) == pytest.approx(3 * 36 * 0.4 / (4 * 256 + 2 * 36), rel=1e-5)
    # Both edges across an axis hold 6 pixels; the near one weighs 3, the far one, whose later
    # pixel is ground, 1. The square starts inside, at row 4 and column 4.
    along = (3 + 1) * 6 * 0.4 / (5 * 15 * 16 + 2 * 36)
    assert float(terms["gradient"]) == pytest.approx(2 * along, rel=1e-5)
    assert _loss(NANO, blank, jnp.repeat(frames[:, -1:], 5, 1), key)[1]["flicker"] == 0


def test_a_decoder_that_trains_alone_leaves_the_latents_as_they_are(params, key):
    gradient = jax.jit(
        jax.grad(lambda p: autoencoder_loss(NANO, p, _scene(), key, decoder_only=True)[0]),
        compiler_options=nano.QUICK,
    )(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["decoder"]))


@pytest.mark.parametrize("alone", [False, True])
def test_a_step_costs_what_its_products_do(params, key, alone):
    """Utilisation (`mfu`) counts no gradient of an encoder that stays."""
    objective = Reconstruction(NANO, World(height=16, width=16, num_frames=5), decoder_only=alone)

    def loss(params):
        return autoencoder_loss(NANO, params, _scene(), key, decoder_only=alone)[0]

    forward, both = (product_flops(run, params) for run in (loss, jax.grad(loss)))
    assert both / forward == pytest.approx(objective.passes, rel=0.06)
