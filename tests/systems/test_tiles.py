"""Clips longer than what a model sees at once, made of tiles."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

import jvdm
from jvdm.pipeline import Request
from jvdm.samplers import Tiles
from jvdm.values import from_data
from jvdm.video import Video

SEEN = 3  # latent frames that the model was trained on
ASKED = {"prompt": "a large red ball rolls to the left", "seed": 0, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def tiled(weights):
    chosen = {"tiles": "blocks", "tiles.overlap": 1, "tiles.frames": SEEN}
    return jvdm.load(weights, sampling=chosen, progress=False)


def with_channel(pipe):
    """The same model with a port for known latents, that has an effect."""
    model = pipe.system.model.clone(ports=("text", "channel"))
    shape = (model.patch**2 * (model.latent_channels + 1), model.width)
    kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    params = {**pipe.params, "model": {**pipe.params["model"], "channel_in": {"kernel": kernel}}}
    system = dataclasses.replace(pipe.system, model=model)
    return dataclasses.replace(pipe, system=system, params=params)


def latents_of(pipe, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a long clip in tiles is none that was not trained
        return np.asarray(pipe(**ASKED, progress=False, output_type="latent", **settings))[0]


def test_every_tile_is_a_clip_of_its_own_with_its_part_of_what_is_known(tiled, pipe):
    """Tiles start at frames 0, 2 and 4: the first and the last are shown the same noise."""
    tiled, pipe = with_channel(tiled), with_channel(pipe)
    random = np.random.default_rng(0)
    clip = Video(random.integers(0, 256, (9, 16, 32, 3)).astype(np.uint8), 12.0)
    short = random.normal(size=(SEEN, 2, 4, 4)).astype(np.float32)
    noise = np.concatenate([short, short[:1], short])
    long = latents_of(tiled, num_frames=25, latents=noise, channel=clip)
    told, untold = (latents_of(pipe, latents=short, channel=known) for known in (clip, None))
    np.testing.assert_allclose(long[:2], told[:2], atol=1e-4)  # the clip is the first tile's
    np.testing.assert_allclose(long[5:], untold[1:], atol=1e-4)  # the last knows none of it
    assert not np.allclose(told, untold, atol=1e-2)


def test_tiles_are_in_the_record(tiled):
    data = tiled.prepare(Request(**ASKED)).system_recorded()
    made = from_data(json.loads(json.dumps(data["sampling"])))
    assert made.tiles == Tiles(SEEN, 1, weights="middle")
