"""Files hold what was given, in bytes that depend on nothing else."""

import base64
import contextlib
import re
from fractions import Fraction

import av
import numpy as np
import pytest

from jvdm import video as video_module
from jvdm.errors import ConfigError
from jvdm.media import read_image
from jvdm.video import Video, fit, read_video, write_image

COLORS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128), (240, 200, 30))


def clip(num_frames=9, height=32, width=48, fps=12.0):
    """A square that moves over a background whose colour changes with the frame."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for index in range(num_frames):
        frames[index] = COLORS[index % len(COLORS)]
        frames[index, 4:12, 2 * index : 2 * index + 8] = (20, 40, 60)
    return Video(frames, fps)


@contextlib.contextmanager
def stream_of(path):
    """The video stream of a file, which answers while the file is open."""
    with av.open(str(path)) as container:
        yield container.streams.video[0]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_equal_frames_give_equal_bytes(tmp_path, suffix):
    first = clip().save(tmp_path / f"a{suffix}").read_bytes()
    assert clip().save(tmp_path / f"b{suffix}").read_bytes() == first
    assert clip(fps=13.0).save(tmp_path / f"c{suffix}").read_bytes() != first


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_colours_and_order_survive(tmp_path, suffix):
    loaded = read_video(clip().save(tmp_path / f"a{suffix}"))
    corner = loaded.frames[:, -8:, -8:].reshape(9, -1, 3).astype(int).mean(1)
    expected = np.array([COLORS[index % len(COLORS)] for index in range(9)])
    assert np.abs(corner - expected).max() < 4


def test_mp4_plays_in_browsers(tmp_path):
    path = clip().save(tmp_path / "a.mp4")
    with stream_of(path) as stream:
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1
    content = path.read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")  # plays before all has arrived


@pytest.mark.parametrize(
    ("fps", "rate"), [(12.0, Fraction(12)), (23.976, Fraction(24000, 1001)), (7.5, Fraction(15, 2))]
)
def test_the_frame_rate_is_exact(tmp_path, fps, rate):
    with stream_of(clip(fps=fps).save(tmp_path / "a.mp4")) as stream:
        assert stream.average_rate == rate


def test_odd_sizes_are_padded_not_scaled(tmp_path):
    loaded = read_video(clip(height=33, width=47).save(tmp_path / "a.mp4"))
    assert loaded.frames.shape == (9, 34, 48, 3)
    even = read_video(clip(height=34, width=48).save(tmp_path / "b.mp4"))
    assert np.abs(loaded.frames.astype(int) - even.frames).mean() < 1


@pytest.mark.parametrize(("fps", "count"), [(24.0, 18), (6.0, 5), (8.0, 6), (12.0, 9)])
def test_resampling_keeps_the_duration(tmp_path, fps, count):
    path = clip().save(tmp_path / "a.mp4")
    resampled, whole = read_video(path, fps), read_video(path)
    assert len(resampled.frames) == count
    shown = np.minimum((np.arange(count) / fps * 12 + 1e-6).astype(int), 8)
    assert np.array_equal(resampled.frames[0], whole.frames[0])
    if fps == 24.0:
        assert np.array_equal(resampled.frames, whole.frames[shown])


def test_only_the_last_frames_are_kept(tmp_path):
    path = clip().save(tmp_path / "a.mp4")
    last = read_video(path, last_frames=4)
    assert np.array_equal(last.frames, read_video(path).frames[-4:])


def test_pictures_survive_exactly(tmp_path):
    image = clip().frames[3, :31, :45]
    assert np.array_equal(read_image(write_image(tmp_path / "a.png", image)), image)


def test_frames_are_written_in_order(tmp_path):
    folder = clip(3).save_frames(tmp_path / "frames")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["frame_0000.png", "frame_0001.png", "frame_0002.png"]
    assert np.array_equal(read_image(folder / names[2]), clip(3).frames[2])


def test_a_contact_sheet_shows_first_and_last_frame():
    movie = clip(33)
    sheet = movie.contact_sheet(columns=5)
    assert sheet.shape == (32, 5 * 50 - 2, 3)
    assert np.array_equal(sheet[:, :48], movie.frames[0])
    assert np.array_equal(sheet[:, -48:], movie.frames[-1])
    assert clip(3).contact_sheet(columns=9).shape == (32, 148, 3)
    assert clip(9).contact_sheet(columns=3, rows=3).shape == (100, 148, 3)


def test_a_video_is_a_sequence_of_frames():
    video = clip()
    assert len(video) == 9 and all(map(np.array_equal, video, video.frames))
    assert np.array_equal(video[-1], video.frames[8]) and video[0].shape == (32, 48, 3)
    part = video[2:5]
    assert isinstance(part, Video) and part.fps == 12.0
    assert np.array_equal(part.frames, video.frames[2:5])
    with pytest.raises(IndexError):
        video[9]


def test_a_video_is_an_array():
    video = clip()
    assert np.asarray(video) is video.frames or np.shares_memory(video, video.frames)
    assert np.asarray(video, np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(video), video.frames)
    with pytest.raises(ValueError):
        np.array(video, np.float32, copy=False)


def test_frames_of_pillow_are_the_frames():
    frames = clip(3).to_pil()
    assert all(map(np.array_equal, frames, clip(3).frames)) and len(frames) == 3


REFUSED = """
import numpy as np
from jvdm import ConfigError, Video
frame = np.zeros((4, 4, 3), np.uint8)
for frames in (np.zeros((2, 4, 4, 3)), frame, np.zeros((2, 4, 4, 4), np.uint8), [1], "frames"):
    try:
        Video(frames, 12.0)
    except ConfigError as error:
        assert "needed is uint8 RGB of the shape [T, H, W, 3]" in str(error), error
    else:
        raise SystemExit(f"{frames} were taken")
try:
    Video(frame[None], "12")
except ConfigError as error:
    assert "fps is '12'; it must be a positive number from 1 to 240" in str(error), error
else:
    raise SystemExit("text was taken as a rate")
"""


def test_frames_and_rates_of_another_kind_are_refused(run_python):
    """In a process of its own: in here every annotation is checked before."""
    run_python("-c", REFUSED, check=True)


@pytest.mark.parametrize("fps", [0.0, 0.99, 241.0, float("nan"), -1.0])
def test_a_rate_that_no_film_has_is_refused(fps):
    with pytest.raises(ConfigError, match="fps is .*from 1 to 240"):
        clip(fps=fps)
    with pytest.raises(ConfigError, match="fps is .*from 1 to 240"):
        clip().resampled(fps)


def test_a_gif_is_not_slowed_down_silently(tmp_path):
    clip(fps=50.0).save(tmp_path / "a.gif")
    with pytest.raises(ConfigError, match="fps is 60; a GIF is shown at 50"):
        clip(fps=60.0).save(tmp_path / "b.gif")


def test_the_home_folder_is_written_as_people_write_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert clip().save("~/a.mp4") == tmp_path / "a.mp4"
    assert np.array_equal(read_video("~/a.mp4").frames, read_video(tmp_path / "a.mp4").frames)
    assert clip().save_sheet("~/a.png") == tmp_path / "a.png"
    assert clip(2).save_frames("~/frames") == tmp_path / "frames"
    assert len(list((tmp_path / "frames").iterdir())) == 2


def test_a_webm_plays_in_browsers(tmp_path):
    with stream_of(clip().save(tmp_path / "a.WEBM")) as stream:
        assert stream.codec_context.name in ("vp9", "libvpx-vp9")
        assert (stream.codec_context.pix_fmt, stream.codec_context.colorspace) == ("yuv420p", 1)


def test_a_notebook_gets_an_mp4():
    html = clip()._repr_html_()
    (encoded,) = re.findall(r"base64,([^\"]+)\"", html)
    content = base64.b64decode(encoded)
    assert content[4:8] == b"ftyp"


def test_a_large_video_is_not_put_into_a_notebook(monkeypatch):
    monkeypatch.setattr(video_module, "MAX_INLINE_BYTES", 100)
    assert "too large to show" in clip()._repr_html_()


@pytest.mark.parametrize("size", [(16, 16), (64, 96), (20, 50), (31, 17)])
def test_fit_crops_the_centre(size):
    frames = np.zeros((2, 40, 60, 3), np.uint8)
    frames[:, :, 25:35] = 200  # a vertical band in the middle stays in the middle
    fitted = fit(frames, *size)
    assert fitted.shape == (2, *size, 3)
    profile = fitted[0, size[0] // 2, :, 0].astype(float)
    centre = (profile * np.arange(size[1])).sum() / profile.sum()
    assert abs(centre - (size[1] - 1) / 2) < 1


def test_fit_leaves_fitting_frames_alone():
    frames = clip().frames
    assert fit(frames, 32, 48) is frames


def test_a_digest_sees_values_and_shape():
    frames = clip().frames
    assert Video(frames, 12.0).digest() == Video(frames.copy(), 24.0).digest()
    changed = frames.copy()
    changed[0, 0, 0, 0] ^= 1
    assert Video(changed, 12.0).digest() != Video(frames, 12.0).digest()
    assert Video(frames.reshape(9, 48, 32, 3), 12.0).digest() != Video(frames, 12.0).digest()


@pytest.mark.parametrize("read", [read_video, read_image])
def test_missing_files_are_named(tmp_path, read):
    with pytest.raises(ConfigError, match="none.mp4 does not exist"):
        read(tmp_path / "none.mp4")


@pytest.mark.parametrize(
    ("read", "message"), [(read_video, "cannot be decoded"), (read_image, "is not a picture")]
)
@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 4000])
def test_files_that_are_no_video_are_refused(tmp_path, read, message, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read(path)
    assert caught.value.exit_code == 2


def test_a_cut_video_is_refused_and_not_shortened(tmp_path):
    path = clip().save(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ConfigError, match="cannot be decoded"):
        read_video(path)


def test_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"known endings are .mp4, .webm, .gif; use a.mp4"):
        clip().save(tmp_path / "a.avi")


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        clip().save(tmp_path / "file" / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
