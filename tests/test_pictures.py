"""Whatever is given as a picture or a clip becomes frames of the canvas, and it is noted."""

import numpy as np
import pytest
from PIL import Image

from jvdm.errors import ConfigError
from jvdm.pictures import Canvas, place, read_channel
from jvdm.pipeline import Request
from jvdm.video import Video, fit
from tests.generate.nano import VAE

SIZE = (16, 32)


def canvas(**values):
    return Canvas(VAE, **({"batch": 1, "num_frames": 9, "fps": 12.0, "fit": "crop"} | values))


def placed(batch=1, how="crop", **given):
    """Returns the frames that are encoded, and the notes."""
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    known, notes = place(Request(**given), canvas(batch=batch, fit=how, **sizes), edits=False)
    return known[0].frames, notes


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["array", "pillow", "list", "file", "text", "home"])
def test_a_picture_may_be_given_in_any_form(picture, tmp_path, monkeypatch, kind):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    forms = {
        "array": picture,
        "pillow": Image.fromarray(picture),
        "list": [Image.fromarray(picture)],
        "file": path,
        "text": str(path),
        "home": "~/a.png",
    }
    frames, notes = placed(image=forms[kind])
    assert np.array_equal(frames, picture[None, None]) and not notes


def test_grey_and_transparent_pictures_are_colour_and_it_is_noted(picture):
    frames, notes = placed(image=Image.fromarray(picture[..., 0]))
    assert np.array_equal(frames[0, 0], np.repeat(picture[..., :1], 3, -1)) and not notes
    alpha = np.zeros((*SIZE, 1), np.uint8)
    frames, notes = placed(image=Image.fromarray(np.concatenate([picture, alpha], -1)))
    assert (frames == 255).all() and notes == ("image: transparent parts were put on white",)


def test_each_prompt_may_have_its_own_picture(picture):
    other = 255 - picture
    pair = [Image.fromarray(picture), Image.fromarray(other)]
    for given in (pair, tuple(pair), [picture, other], np.stack([picture, other])):
        frames, _ = placed(batch=2, image=given)
        assert np.array_equal(frames[:, 0], np.stack([picture, other]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], r"image is a list .*shape \(0,\).; needed is a file, pictures of Pillow"),
        (7, "image is a int .*needed is a file"),
        ({"path": "a.png"}, "image is a dict"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)], "2 parts of image differ"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        ([np.zeros((4, 4, 3), np.uint8)] * 3, "3 pictures were given as image for 1 prompts"),
        (Image.new("F", (4, 4)), "float pixels"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(ConfigError, match=message):
        placed(image=image)


def test_a_clip_may_be_given_in_any_form(rng, tmp_path):
    clip = rng.integers(0, 256, (5, *SIZE, 3)).astype(np.uint8)
    pillows = [Image.fromarray(frame) for frame in clip]
    for given in (clip, clip[None], pillows, Video(clip, 12.0), [Video(clip, 12.0)]):
        assert np.array_equal(placed(video=given)[0], clip[None])
    doubled = Video(np.repeat(clip, 2, axis=0), 24.0)
    assert np.array_equal(placed(video=doubled)[0], clip[None])
    assert np.array_equal(placed(video=[doubled])[0], clip[None])


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ("crop", "was cropped in the centre and resized to 16x32"),
        ("pad", "was resized and padded with black to 16x32"),
        ("stretch", "was stretched to 16x32"),
    ],
)
def test_pictures_of_another_shape_are_fitted_as_asked(how, note):
    picture = np.full((32, 32, 3), 100, np.uint8)
    picture[8:24] = 200
    frames, notes = placed(how=how, image=picture)
    assert notes == (f"image of 32x32 (height x width) {note}",)
    middle, side = frames[0, 0, :, 16, 0].astype(int), frames[0, 0, 8, :, 0].astype(int)
    if how == "crop":  # the middle half of the height, doubled in nothing
        assert (middle == 200).all() and (side == 200).all()
    elif how == "pad":
        assert (side[:8] == 0).all() and (side[24:] == 0).all() and side[8:24].min() > 180
        assert middle[0] == pytest.approx(100, abs=3) and middle[8] == pytest.approx(200, abs=3)
    else:
        assert side.min() > 180 and middle[0] == pytest.approx(100, abs=3)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (3, 5), (16, 33)])
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_every_shape_fits(size, how):
    frames = np.full((2, *size, 3), 90, np.uint8)
    fitted = fit(frames, *SIZE, how=how)
    assert fitted.shape == (2, *SIZE, 3)
    assert set(np.unique(fitted)) <= ({0, 90} if how == "pad" else {90})


def test_the_channel_is_fitted_too():
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    clip = np.full((9, 32, 32, 3), 90, np.uint8)
    read = read_channel(clip, canvas(fit="pad", **sizes))
    assert read is not None and read.frames.shape == (1, 9, *SIZE, 3)
    assert (read.frames[..., :8, :] == 0).all() and (read.frames[..., 8:24, :] == 90).all()
