"""Every request that cannot be run is refused before any work, with the fix in the message."""

import dataclasses
import hashlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import samplers
from jvdm.errors import ConfigError, JvdmError, ShapeError
from jvdm.pipeline.request import Given, Request, prepare
from jvdm.prompts import MAX_SEED
from jvdm.settings import with_numbers
from jvdm.video import Video, write_image
from tests.generate.nano import MANIFEST, SYSTEM

IMAGE = np.zeros((16, 32, 3), np.uint8)
CLIP = np.zeros((40, 16, 32, 3), np.uint8)


def job(prompt="a red ball rests", seed=0, **values):
    return prepare(Request(prompt=(prompt,), seed=(seed,), **values), SYSTEM, MANIFEST)


def test_defaults_are_the_models():
    settings = job().settings
    assert (settings.height, settings.width, settings.num_frames) == (16, 32, 9)
    assert (settings.fps, settings.num_inference_steps, settings.guidance_scale) == (12.0, 3, 2.0)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, (2.4, 2.8)),
        ({"guidance_scale": 4.0}, (4.0, None)),
        ({"guidance_scale_2": 3.0}, (2.4, 3.0)),
        ({"guidance_scale": 4.0, "guidance_scale_2": 3.0}, (4.0, 3.0)),
    ],
)
def test_a_scale_that_is_given_alone_is_that_of_the_whole_run(asked, found):
    rule = samplers.TwoScales(2.4, 2.8, 0.9)
    sampling = dataclasses.replace(SYSTEM.sampling, guidance=rule)
    changed: Any = with_numbers(sampling, Request(prompt=("a red ball rests",), **asked)).guidance
    assert (changed.scale, changed.scale_2) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 40}, "height is 40; it must be a multiple of 16; use 32 or 48"),
        ({"width": 7}, "width is 7; it must be a multiple of 16; use 16"),
        ({"width": 0}, "width is 0"),
        ({"height": -16}, "height is -16"),
        ({"num_frames": 10}, r"num_frames is 10.*9 and 13"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"image": IMAGE, "num_frames": 1}, "num_frames is 1; every frame would be given; use 5"),
        ({"image": IMAGE, "last_image": IMAGE, "num_frames": 5}, "use 9 or more"),
        ({"video": CLIP, "prefix_frames": 9}, "prefix_frames is 9.*use 1 to 5"),
        ({"video": CLIP, "prefix_frames": 4}, "prefix_frames is 4.*multiple of 4"),
        ({"video": CLIP, "video_at": "5s"}, "video_at is 5s; the result has"),
        ({"video": CLIP[:3], "video_at": "end"}, "has 3 frames.*4 are one latent frame"),
        ({"latents": np.zeros((1, 2, 2, 4, 4))}, r"latents have the shape \(1, 2, 2, 4, 4\)"),
    ],
)
def test_sizes_that_do_not_fit(values, message):
    with pytest.raises(ShapeError, match=message):
        job(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"fps": 0.0}, "fps is 0.0; it must be a positive number"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"shift": -1.0}, "shift is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": MAX_SEED + 1}, "seeds are 0 to 4294967295"),
        ({"prompt": "ball " * 70}, "70 tokens.*limit is 64"),
        ({"image": IMAGE, "video": CLIP}, "image and video were both given"),
        ({"last_image": IMAGE}, "last_image was given without image"),
        ({"prefix_frames": 5}, "prefix_frames is 5; no video was given"),
        ({"video_at": "1s"}, "video_at is 1s; no video was given"),
        ({"video": CLIP, "video_at": "late"}, "video_at is 'late'; it is a time in seconds"),
        ({"video": CLIP, "video_at": 0, "prefix_frames": 5}, "prefix_frames is 5 and video_at 0"),
        (
            {"video": CLIP, "video_at": 0, "image": IMAGE},
            "latent frames 0, 0, 1 are given; two say",
        ),
        (
            {"image": IMAGE / 255},
            r"image is a ndarray \(float64.*uint8 RGB of the shape \[H, W, 3\]",
        ),
        ({"image": IMAGE[..., :1]}, r"shape \(16, 32, 1\)"),
        ({"video": CLIP[:0]}, r"video is a ndarray.*\[T, H, W, 3\]"),
        ({"image": np.stack([IMAGE] * 3)}, "3 pictures were given as image for 1 prompts"),
        ({"image": "missing.png"}, "image missing.png does not exist"),
        ({"video": "missing.mp4"}, "video missing.mp4 does not exist"),
    ],
)
def test_values_that_cannot_be_used(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        job(**values)
    assert caught.value.exit_code == 2


def test_weights_of_so_many_steps_take_their_own_number_alone():
    """A student of two jumps: its levels are explicit, and two steps are what they have."""
    levels = samplers.ExplicitLevels((1.0, 0.7, 0.0))
    sampling = dataclasses.replace(SYSTEM.sampling, levels=levels)
    student = dataclasses.replace(SYSTEM, sampling=sampling)
    asked = Request(prompt=("a red ball rests",), seed=(0,))
    plain, same = (
        prepare(dataclasses.replace(asked, num_inference_steps=count), student, MANIFEST)
        for count in (None, 2)
    )
    assert plain.settings == same.settings and same.settings.num_inference_steps == 2
    np.testing.assert_array_equal(plain.matrix.levels, same.matrix.levels)
    told = "num_inference_steps is 3; .* those that its weights were made for: 2; use 2"
    with pytest.raises(ConfigError, match=told):
        prepare(dataclasses.replace(asked, num_inference_steps=3), student, MANIFEST)


def test_the_empty_prompt_is_no_prompt():
    tokens = job("").ids
    assert np.array_equal(tokens[0], tokens[1])


def test_a_video_that_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="a.mp4 cannot be decoded"):
        job(video=tmp_path / "a.mp4")


def test_a_matrix_of_another_length_names_the_frames_that_fit():
    matrix = samplers.synchronous(samplers.linspace_levels(2), 5)
    with pytest.raises(ShapeError, match="5 latent frames.*use num_frames=17"):
        job(matrix=matrix)


LEVELS = samplers.shift_levels(samplers.linspace_levels(3), 2.0)
SYNC = samplers.synchronous(LEVELS, 3)
ONE_BY_ONE = samplers.windowed(samplers.lag_matrix(LEVELS, 3, lag=3))
TOO_NOISY = samplers.synchronous(jnp.array([1.5, 0.5, 0.0]), 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"matrix": samplers.truncate(SYNC, 1)}, "latent frames 0, 1, 2 do not start as noise"),
        ({"matrix": samplers.freeze(SYNC, (0,))}, "latent frames 0 do not start as noise"),
        (
            {"matrix": samplers.freeze(SYNC, (0,), level=2), "image": IMAGE},
            "latent frame 0 stays at noise level 0.5 to the last row; a frame of a video ends",
        ),
        (
            {"matrix": ONE_BY_ONE, "image": IMAGE},
            "latent frames 0 are given; no window of 1 latent frames shows them",
        ),
        ({"matrix": TOO_NOISY}, "a noise level is 1.5; the process of this system ends at 1"),
        ({"matrix": SYNC, "num_inference_steps": 5}, "num_inference_steps is 5; the matrix that"),
        ({"matrix": SYNC, "shift": 5.0}, "shift is 5.0; the matrix that was given says it"),
        ({"num_frames": 4 * 10**9 + 1}, "3 rows of 1,000,000,001 latent frames was asked for"),
        ({"num_inference_steps": 10**8}, "100,000,000 rows of 3 latent frames .* 3,333,333 rows"),
    ],
)
def test_a_matrix_is_run_as_it_says_or_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        job(**values)


def test_a_matrix_that_keeps_a_frame_keeps_the_one_that_is_given():
    made = job(matrix=samplers.windowed(samplers.freeze(SYNC, (0,)), context=1), image=IMAGE)
    assert made.matrix.window == 3 and (np.asarray(samplers.times(made.matrix))[:, 0] == 0).all()


def test_a_record_says_which_levels_were_run():
    own, given = job(), job(matrix=samplers.synchronous(samplers.linspace_levels(2), 3))
    steps = [made.recorded()["num_inference_steps"] for made in (own, given)]
    assert steps == [3, 2] and own.recorded()["shift"] == 2.0
    assert given.recorded()["shift"] is None  # none was applied
    assert given.system_recorded()["sampling"]["levels"] is None
    matrices = [made.system_recorded()["matrix"] for made in (own, given, job(matrix=SYNC))]
    assert [matrix["rows"] for matrix in matrices] == [3, 2, 3]
    assert matrices[0] == matrices[2] and matrices[0]["sha256"] != matrices[1]["sha256"]


def test_a_record_says_what_was_given(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, IMAGE)
    noise = np.ones((3, 2, 4, 4), np.float32)
    clean = Given(jnp.zeros((1, 1, 2, 4, 4)), (2,))
    inputs = job(image=path, latents=noise, given=(clean,)).recorded()["inputs"]
    assert inputs["image"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert inputs.keys() == {"image", "latents", "given"}
    others = job(image=IMAGE, latents=noise + 1).recorded()["inputs"]
    assert others["latents"] != inputs["latents"]
    assert job(image=255 - IMAGE).recorded()["inputs"]["image"] != others["image"]
    assert job().recorded()["inputs"] == {}


def test_unknown_words_are_named_and_kept():
    plain = job("a red ball rests")
    odd = job("a red zebra rests", negative_prompt="an umbrella")
    assert not plain.warnings
    (warning,) = odd.warnings
    assert "'umbrella', 'zebra'" in warning
    assert (odd.ids[1] != 0).sum() == (plain.ids[1] != 0).sum()


def test_more_frames_than_trained_warns_and_names_what_to_use():
    (warning,) = job(num_frames=13).warnings
    assert "13 frames are more than the 9 of training" in warning
    assert "use 9" in warning and "--video" in warning


def test_a_size_that_was_not_trained_warns():
    (warning,) = job(height=32).warnings
    assert "32x32" in warning and "16x32" in warning


def test_a_picture_of_another_size_is_cropped_and_said_so():
    made = job(image=np.zeros((50, 40, 3), np.uint8))
    assert made.known[0].frames.shape == (1, 1, 16, 32, 3)
    (note,) = made.warnings
    assert "image of 50x40" in note and "16x32" in note


def test_known_columns_are_frozen_at_clean():
    matrix = job(image=IMAGE, last_image=IMAGE, num_frames=13).matrix
    levels = np.asarray(samplers.times(matrix))
    assert (levels[:, [0, 3]] == 0).all()
    assert (levels[0, [1, 2]] == 1).all()


@pytest.mark.parametrize(
    ("length", "num_frames", "columns"),
    [(40, 17, 4), (40, 9, 2), (40, 5, 1), (12, 17, 3), (3, 17, 1), (1, 17, 1)],
)
def test_how_much_of_a_video_is_kept(length, num_frames, columns):
    made = job(video=CLIP[:length], num_frames=num_frames)
    assert made.known[0].columns == tuple(range(columns))
    assert made.known[0].frames.shape[1] == 1 + 4 * (columns - 1)


def test_a_video_file_is_read_at_the_models_rate(tmp_path):
    frames = np.arange(24, dtype=np.uint8)[:, None, None, None] * 10
    frames = np.broadcast_to(frames, (24, 16, 32, 3))
    path = Video(frames, 24.0).save(tmp_path / "a.mp4")
    kept = job(video=path).known[0].frames[0, :, 0, 0, 0].astype(int)
    # The last five frames of every second one.
    assert np.abs(kept - np.arange(14, 24, 2) * 10).max() <= 3


def test_a_seed_is_needed_for_each_prompt():
    with pytest.raises(JvdmError, match="2 prompts and 1 seeds"):
        prepare(Request(prompt=("a", "b"), seed=(0,)), SYSTEM, MANIFEST)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (np.int64(3), (3, 4)),
        (np.array(3), (3, 4)),
        (3.0, (3, 4)),
        (range(5, 7), (5, 6)),
        ([np.int64(8), 1], (8, 1)),
        (np.array([8, 1]), (8, 1)),
    ],
)
def test_seeds_may_be_numbers_of_any_library(seed, expected):
    made = prepare(Request(prompt=("a", "b"), seed=seed), SYSTEM, MANIFEST)
    assert made.seeds == expected and all(type(one) is int for one in made.seeds)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "3"}, "the seed is '3' .str.; it must be a whole number"),
        ({"seed": 3.5}, "the seed is 3.5; it must be a whole number"),
        ({"seed": True}, "the seed is True .bool."),
        ({"seed": ["3"]}, "a seed is '3' .str."),
        ({"seed": {3}}, "the seed is .* .set.; it must be"),
        ({"height": "16"}, "height is '16' .str.; it must be a whole number"),
        ({"num_videos": "2"}, "num_videos is '2' .str."),
        ({"negative_prompt": ["a"]}, "negative_prompt is .*list.; it must be text"),
        ({"fit": "zoom"}, "fit is 'zoom' .str.; it must be crop or pad or stretch"),
        ({"latents": "noise"}, "latents are a str; they cannot be read as numbers"),
        ({"latents": [[1.0], [1.0, 2.0]]}, "latents are a list; they cannot be read"),
        ({"prompt": 7}, "the prompt is 7; it must be text"),
        ({"prompt": [None]}, "the prompt is None; it must be text"),
    ],
)
def test_values_of_another_type_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        prepare(Request(**{"prompt": "a ball", "seed": 0} | values), SYSTEM, MANIFEST)


def test_how_pictures_fit_is_settled_and_recorded():
    image = np.full((32, 32, 3), 90, np.uint8)
    assert job(image=image).recorded()["fit"] == job().settings.fit == "crop"
    padded = job(image=image, fit="pad")
    assert padded.recorded()["fit"] == "pad"
    assert set(np.unique(padded.known[0].frames)) == {0, 90}


def test_lists_of_pictures_and_files_have_digests(tmp_path):
    path = write_image(tmp_path / "a.png", IMAGE)
    one = job(image=[str(path)]).inputs["image"]
    assert one == job(image=[str(path)]).inputs["image"] != job(image=[IMAGE]).inputs["image"]
    write_image(path, 255 - IMAGE)
    assert job(image=[str(path)]).inputs["image"] != one


def test_settled_numbers_are_those_of_python():
    made = job(height=16.0, width=np.int64(32), num_videos=np.int64(1), fps=np.float32(12))
    numbers = made.settings.height, made.settings.width, made.settings.fps
    assert numbers == (16, 32, 12.0) and [type(one) for one in numbers] == [int, int, float]
