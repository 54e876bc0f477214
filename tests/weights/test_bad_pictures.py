"""What is wrong with the pictures that a network is given: one table for all that read some.

LTX-Video keeps a picture by a column at level 0, Wan 2.1 of pictures is told it and reads what a
vision encoder says of it.
"""

import functools
import warnings

import numpy as np
import pytest

import jvdm
from jvdm.errors import JvdmError
from jvdm.pipeline.request import request_of
from tests.weights.ltx_folder import write_ltx
from tests.weights.wan_folder import write_wan

FAMILIES = {
    "ltx": (write_ltx, "0_9_5", {"height": 32, "width": 64, "num_frames": 17}),
    "wan": (write_wan, "picture", {"height": 16, "width": 32, "num_frames": 5}),
    "a14b": (write_wan, "a14b of a picture", {"height": 16, "width": 32, "num_frames": 5}),
}
PICTURE = np.full((32, 64, 3), 90, np.uint8)
CLIP = np.broadcast_to(PICTURE, (17, 32, 64, 3))
TWO = ["a red ball", "a blue ball"]

ASKED = {
    "a picture without colours": ({"image": PICTURE[..., 0]}, r"shape \(32, 64\).*uint8 RGB"),
    "one channel": ({"image": PICTURE[..., :1]}, r"shape \(32, 64, 1\).*uint8 RGB"),
    "transparency": ({"image": np.zeros((8, 8, 4), np.uint8)}, r"\(8, 8, 4\).*uint8 RGB"),
    "fractions": ({"image": PICTURE / 255.0}, "float64.*uint8 RGB"),
    "no numbers": ({"image": np.full((8, 8, 3), np.nan)}, "float64.*uint8 RGB"),
    "no pixels": ({"image": PICTURE[:0]}, r"shape \(0, 64, 3\)"),
    "a number": ({"image": 3}, "image is a int"),
    "no file": ({"image": "/nowhere.png"}, "/nowhere.png does not exist"),
    "a clip": ({"image": CLIP}, "17 pictures were given as image for 1 prompts"),
    "more pictures than prompts": (
        {"prompt": TWO, "image": np.stack([PICTURE] * 3)},
        "3 pictures were given as image for 2 prompts.*give 1 or as many",
    ),
    "fewer pictures than prompts": (
        {"prompt": [*TWO, "a box"], "image": [PICTURE] * 2},
        "2 pictures were given as image for 3 prompts",
    ),
    "pictures of several sizes": (
        {"prompt": TWO, "image": [PICTURE, PICTURE[:8]]},
        r"2 parts of image differ; \(32, 64, 3\), \(8, 64, 3\)",
    ),
    "more seeds than prompts": (
        {"prompt": TWO, "image": PICTURE, "seed": [1, 2, 3]},
        "2 prompts and 3 seeds",
    ),
    "no prompts": ({"prompt": [], "image": PICTURE}, "list of prompts is empty"),
    "a prompt that is none": ({"prompt": [3], "image": PICTURE}, "the prompt is 3"),
    "negative prompts": (
        {"prompt": TWO, "image": PICTURE, "negative_prompt": ["", ""]},
        "negative_prompt is .*must be text",
    ),
    "the last alone": ({"last_image": PICTURE}, "last_image was given without image"),
    "picture and video": ({"image": PICTURE, "video": CLIP}, "image and video were both given"),
    "nothing to make": ({"image": PICTURE, "num_frames": 1}, "every frame would be given"),
    "a size between cells": ({"image": PICTURE, "height": 20}, "height is 20.*multiple of"),
    "frames between latents": ({"image": PICTURE, "num_frames": 16}, "num_frames is 16.*nearest"),
    "no way to fit": ({"image": PICTURE, "fit": "squeeze"}, "fit is 'squeeze'.*crop or pad"),
    "other latents": (
        {"image": PICTURE, "latents": np.zeros((1, 2, 2, 2, 9), np.float32)},
        r"latents have the shape \(1, 2, 2, 2, 9\)",
    ),
}


@pytest.fixture(scope="module")
def pipe_of(tmp_path_factory):
    @functools.cache
    def pipe(family):
        write, version, _ = FAMILIES[family]
        folder = write(tmp_path_factory.mktemp(family) / "folder", version)
        return jvdm.load(folder, dtype="float32", progress=False)

    return pipe


def prepared(pipe, family, **asked):
    return pipe.prepare(request_of(**{"prompt": "a", **FAMILIES[family][2], **asked}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ASKED)
def test_pictures_that_cannot_be_used(pipe_of, family, case):
    asked, message = ASKED[case]
    with pytest.raises(JvdmError, match=message):
        prepared(pipe_of(family), family, **asked)


@pytest.mark.parametrize("family", ["wan", "a14b"])
def test_a_network_of_pictures_needs_one(pipe_of, family):
    for asked in ({}, {"video": CLIP[:3]}):
        with pytest.raises(JvdmError, match="makes a video of its first picture"):
            prepared(pipe_of(family), family, **asked)


def test_a_vision_encoder_of_one_picture_is_given_one(pipe_of):
    with pytest.raises(JvdmError, match="reads the first picture alone.*alone"):
        prepared(pipe_of("wan"), "wan", image=PICTURE, last_image=PICTURE)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_done_to_a_picture_is_noted(pipe_of, family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = prepared(pipe_of(family), family, image=PICTURE[:24, :24])
    assert any("image of 24x24" in note and "cropped" in note for note in job.warnings)
