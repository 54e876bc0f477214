"""What is taken on: limits that cost nothing to look at, and kinds of files."""

import dataclasses
import math

import numpy as np
import pytest

import jvdm
from jvdm.pipeline import Request
from jvdm.serving.limits import Limits, TooMuch
from jvdm.serving.tasks import ending_of
from jvdm.video import Video


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_a_limit_is_above_zero(name):
    whole = isinstance(getattr(Limits(), name), int)
    for value in (0, -1) if whole else (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(jvdm.ConfigError, match=f"--{name.replace('_', '-')} is"):
            dataclasses.replace(Limits(), **{name: value}).validated()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_videos": 5}, "num_videos is 5; 4 is the most here"),
        ({"num_frames": 513}, "num_frames is 513"),
        ({"duration": 513.0, "fps": 1.0}, "num_frames is 513"),
        ({"num_frames": 300, "height": 1024, "width": 1024}, "300 frames of 1024x1024: 314.573"),
        ({"num_frames": 100, "height": 1024, "width": 1024, "num_videos": 3}, "megapixels"),
        ({"num_inference_steps": 201}, "num_inference_steps is 201"),
        ({"num_inference_steps": 60, "invert": 2}, "num_inference_steps is 240"),
        ({"negative_prompt": "x" * 2001}, "characters of negative_prompt is 2001"),
        ({"source_prompt": "x" * 2001}, "characters of source_prompt is 2001"),
        ({"switch": {"row1": "x" * 2001}}, "characters of switch is 2001"),
        ({"switch": {f"row{i}": "x" for i in range(17)}}, "texts in switch is 17"),
    ],
)
def test_what_is_too_much(pipe, settings, said):
    with pytest.raises(TooMuch, match=said):
        Limits().check(Request(prompt="a ball", **settings), pipe.manifest)


def test_what_is_just_enough(pipe):
    settings = {"num_videos": 4, "num_frames": 512, "height": 256, "width": 256}
    asked = Request(prompt="x" * 2000, **settings, num_inference_steps=50, invert=2)
    assert Limits(max_megapixels=134.3).check(asked, pipe.manifest) == asked


def test_the_frames_of_a_film_are_counted(tmp_path):
    path = Video(np.zeros((40, 32, 32, 3), np.uint8), 12.0).save(tmp_path / "film.mp4")
    Limits(max_film_megapixels=0.045).check_film("video", path)
    with pytest.raises(TooMuch, match=r"video has more than 29 frames of 0.00102 megapixels"):
        Limits(max_film_megapixels=0.03).check_film("video", path)


@pytest.mark.parametrize(
    ("name", "content", "ending"),
    [
        ("image", b"\x89PNG\r\n", ".png"),
        ("image", b"\xff\xd8\xff\xe0", ".jpg"),
        ("last_image", b"RIFF0000WEBP", ".webp"),
        ("video", b"\0\0\0\x18ftypisom", ".mp4"),
        ("video", b"\x1aE\xdf\xa3", ".mkv"),
        ("channel", b"BM", ".bmp"),
        ("channel", b"RIFF0000AVI ", ".avi"),
        ("video", b"GIF89a", ".gif"),
    ],
)
def test_files_are_known_by_their_first_bytes(name, content, ending):
    assert ending_of(name, content) == ending


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("image", b""),
        ("image", b"\0\0\0\x18ftypisom"),
        ("video", b"\x89PNG\r\n"),
        ("video", b"#EXTM3U\nfile:///etc/passwd"),
        ("video", b"ffconcat version 1.0"),
        ("channel", b"<?xml"),
    ],
)
def test_nothing_else_is_opened(name, content):
    with pytest.raises(jvdm.ConfigError, match=f"{name} is none that is read here"):
        ending_of(name, content)
