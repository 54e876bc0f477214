"""ClipVision: pictures are prepared and seen as the reference does it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import WeightsError
from jvdm.models.clip import ClipPictures
from jvdm.models.clip_published import unread, vision_encoder, vision_encoder_names
from jvdm.weights.convert import converted, published
from tests.parity.references import Reference, off
from tests.vae.nano import QUICK
from tests.weights.wan_folder import PROCESSOR, pictures_of

REFERENCE = Reference("clip_vision")
CONFIG = REFERENCE.config


@functools.cache
def encoder(**changes):
    """Returns the encoder of the reference, its parameters, and it as a compiled function."""
    network = vision_encoder(CONFIG | changes, PROCESSOR).clone(dtype="float32")
    pixels = jnp.zeros((1, 28, 28, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels)["params"]
    names = vision_encoder_names(network)
    params, report = converted(names, REFERENCE.weights, shapes, "a folder")
    run = jax.jit(lambda p, x: network.apply({"params": p}, x), compiler_options=QUICK)
    return network, params, report, functools.partial(run, params)


def test_the_states_before_the_last_are_those_of_the_reference():
    (picture,) = pictures_of((1, 28, 28))
    for act, name in (("gelu", "states"), ("quick_gelu", "quick")):
        network, _, _, run = encoder(hidden_act=act)
        pixels = network.read(picture[None].repeat(2, 0))
        states = run(pixels)
        assert off(states[0], REFERENCE.outputs[name][0]) < 5e-6  # 8.3e-7 and 6.3e-7 were measured
        np.testing.assert_array_equal(states[0], states[1])


@pytest.mark.parametrize("name", [name for name in REFERENCE.outputs if "x" in name])
def test_pictures_of_any_size_are_prepared_as_by_the_reference(name):
    height, width = map(int, name.split("x"))
    (picture,) = pictures_of((1, height, width))
    made = encoder(hidden_act="gelu")[0].read(picture[None])[0]
    np.testing.assert_allclose(made.transpose(2, 0, 1), REFERENCE.outputs[name], atol=1e-6)


def test_a_small_picture_stands_on_black():
    pictures = ClipPictures(size=None, crop=(5, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
    made = pictures(np.full((2, 7, 3), 255, np.uint8))
    np.testing.assert_array_equal(made[..., 0], np.repeat([[0], [0], [1], [1], [0]], 4, 1))


def test_every_array_is_read_or_goes_along():
    network, params, report, _ = encoder(hidden_act="gelu")
    names = vision_encoder_names(network)
    rest = unread(network, REFERENCE.weights)
    again = published(names, params) | rest
    assert again.keys() == REFERENCE.weights.keys() and report.unused == len(rest) == 18
    for name, array in again.items():
        np.testing.assert_array_equal(array, REFERENCE.weights[name])
    shorter = {name.removeprefix("vision_model."): x for name, x in REFERENCE.weights.items()}
    same, _ = converted(names, shorter, params, "a folder")
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("changes", "processor", "said"),
    [
        ({"hidden_act": "silu"}, {}, "the activation silu; known are gelu, quick_gelu"),
        ({"image_size": 42}, {}, r"of \(28, 28\); the image encoder reads 42x42"),
        ({}, {"do_center_crop": False}, "of 28; the image encoder reads 28x28"),
    ],
)
def test_what_does_not_fit_is_refused(changes, processor, said):
    with pytest.raises(WeightsError, match=said):
        vision_encoder(CONFIG | changes, PROCESSOR | processor)
