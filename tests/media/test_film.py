"""Films as people have them come out as players show them, whichever way they come in."""

import itertools

import av
import numpy as np
import pytest
from av.stream import Disposition

from jvdm import media
from jvdm.data.video_files import Unusable, decode_clip, seconds
from jvdm.errors import ConfigError
from jvdm.media import film as film_module
from jvdm.video import MAX_BYTES, read_video
from tests.media.films import RATE, greys, numbers, ways_in, with_matrix, write

TURNS = [
    turn
    for turn in itertools.product((-1, 0, 1), repeat=4)
    if (turn[0] == turn[3] == 0) != (turn[1] == turn[2] == 0)
    and abs(turn[0] * turn[3] - turn[1] * turn[2]) == 1
]


def corner(height=32, width=64):
    """Black with a white rectangle at the top left."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 255
    return picture


@pytest.mark.parametrize(("a", "b", "c", "d"), TURNS)
def test_a_film_is_turned_and_mirrored_as_its_matrix_says(tmp_path, a, b, c, d):
    assert len(TURNS) == 8
    path = with_matrix(write(tmp_path / "a.mp4", [corner()] * 3), a, b, c, d)
    size = (32, 64) if a else (64, 32)
    x, y = a + c < 0, b + d < 0  # whether the white corner is at the right, at the bottom
    for frames in ways_in(path, size):
        assert frames.shape[1:3] == size
        white = frames[0] > 128
        half = white[size[0] // 2 :] if y else white[: size[0] // 2]
        part = half[:, size[1] // 2 :] if x else half[:, : size[1] // 2]
        assert part[2:-2, 2:-2].all() and white.mean() == pytest.approx(0.25, abs=0.02)


def test_pixels_that_are_not_square_are_widened(tmp_path):
    """128x64 at 2:1 is shown as 256x64."""
    aspect = ("sample_aspect_ratio", 2)
    path = write(tmp_path / "a.mp4", [corner(64, 128)] * 3, tags=[aspect])
    notes = []
    assert read_video(path, RATE, notes=notes).frames.shape == (3, 64, 256, 3)
    assert notes == ["pixels 2 times as wide as high were widened"]
    for frames in ways_in(path, (64, 256)):
        assert frames[0, 4:28, 4:124].min() > 240 and frames[0, :, 132:].max() < 15


def test_wide_pixels_are_widened_before_the_film_is_turned(tmp_path):
    path = write(tmp_path / "a.mp4", [corner(64, 128)] * 3, tags=[("sample_aspect_ratio", 2)])
    assert read_video(with_matrix(path, 0, 1, -1, 0)).frames.shape[1:3] == (256, 64)


def test_transparent_films_are_put_on_white_and_it_is_noted(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0], pixels[:8, :, 3], pixels[..., 1] = 255, 51, 200  # alpha, green
    pixels[8:, :, 0], pixels[:8, :, 0] = 255, 51
    pixels[..., 3] = 0
    frames = [av.VideoFrame.from_ndarray(pixels, format="argb") for _ in range(3)]
    path = write(tmp_path / "a.mov", frames, codec="qtrle", pix_fmt="argb")
    notes = []
    picture = read_video(path, notes=notes).frames[0]
    assert (picture[8:] == (0, 0, 0)).all() or (picture[8:] == (200, 0, 0)).all()
    assert (picture[:8] == (244, 204, 204)).all()
    assert notes == ["transparent parts were put on white"]
    for way in ways_in(path, (16, 16)):
        assert (way[0] == picture).all()


@pytest.mark.parametrize(("size", "matrix"), [((720, 1280), "ITU709"), ((48, 64), "ITU601")])
@pytest.mark.parametrize("full", [False, True])
def test_untagged_high_definition_is_bt709(tmp_path, size, matrix, full):
    red = np.broadcast_to(np.array([200, 30, 40], np.uint8), (*size, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(red), format="rgb24")
    frame = frame.reformat(
        format="yuv420p", dst_colorspace=matrix, dst_color_range=2 if full else 1
    )
    frame.colorspace, frame.color_range = 2, 2 if full else 0
    path = write(tmp_path / "a.mp4", [frame], tags=[("color_range", 2)] if full else ())
    for frames in ways_in(path, size):
        assert np.abs(frames[0, 10:-10, 10:-10].astype(int) - (200, 30, 40)).max() <= 3


def high_range(path, nits_code, transfer):
    """Writes 10 bits of BT.2020 with every colour at one code of 0..1."""
    codes = np.full((64, 64, 3), round(65535 * nits_code), np.uint16)
    frame = av.VideoFrame.from_ndarray(codes, format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace="bt2020", dst_color_range=1)
    tags = [("colorspace", 9), ("color_trc", transfer), ("color_primaries", 9), ("color_range", 1)]
    return write(path, [frame] * 2, codec="ffv1", pix_fmt="yuv420p10le", tags=tags)


@pytest.mark.parametrize(("transfer", "code"), [(16, 0.5807), (18, 0.75)])
def test_high_dynamic_range_is_brought_to_an_ordinary_screen(tmp_path, transfer, code):
    """Reference white of ITU-R BT.2408 in both systems: bright, but below the highlights."""
    path = high_range(tmp_path / "a.mkv", code, transfer)
    notes = []
    shown = read_video(path, notes=notes).frames
    assert shown.min() >= 215 and shown.max() <= 240
    assert notes == ["wide colours or high dynamic range were brought to BT.709"]
    for way in ways_in(path, (64, 64)):
        assert (way == shown[:1]).all()


def test_colours_that_ffmpeg_would_misread_are_refused(tmp_path):
    path = write(tmp_path / "a.mp4", greys(3), tags=[("colorspace", 8)])
    with pytest.raises(ConfigError, match="colour matrix .number 8 of FFmpeg. is not known"):
        read_video(path)
    with pytest.raises(Unusable, match="colour matrix"):
        decode_clip(path, 0.0, 1, RATE, (32, 48))


def test_times_are_those_of_the_stream(tmp_path):
    """Half a second of stillness in the middle, as screen recorders and phones write it."""
    times = [0.0, 0.1, 0.2, 0.7, 0.8]
    path = write(tmp_path / "a.mkv", greys(5), times=times)
    shown = [0, 1, 2, 2, 2, 2, 2, 3, 4]
    assert numbers(read_video(path, 10.0).frames)[:9] == shown
    assert numbers(decode_clip(path, 0.0, 9, 10.0, (32, 48))) == shown
    assert numbers(decode_clip(path, 0.45, 3, 10.0, (32, 48))) == [2, 2, 2]
    own = read_video(path)
    assert own.fps == pytest.approx(10.0) and numbers(own.frames)[:9] == shown


@pytest.mark.parametrize("rate", [12.0, 24.0, 23.976, 30.0, 60.0])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".gif", ".avi", ".ts"])
def test_a_film_read_at_its_own_rate_has_each_frame_once(tmp_path, suffix, rate, monkeypatch):
    """Also where the container rounds times to thousandths, or has only those of decoding."""
    if suffix == ".gif" and rate > 50:
        pytest.skip("no GIF has this rate")
    monkeypatch.setattr("tests.media.films.RATE", rate)
    codec, pix_fmt = ("gif", "rgb8") if suffix == ".gif" else ("libx264", "yuv420p")
    path = write(tmp_path / f"a{suffix}", greys(20), codec=codec, pix_fmt=pix_fmt)
    own = read_video(path)
    assert len(own) == 20 and own.fps == pytest.approx(rate, rel=2e-3)
    assert len(read_video(path, rate)) == 20
    if suffix != ".gif":  # 256 colours
        assert numbers(own.frames) == numbers(read_video(path, rate).frames) == list(range(20))


def test_frames_without_times_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="frames have no times"):
        read_video(write(tmp_path / "a.h264", greys(5)), RATE)


def test_a_cover_is_no_film(tmp_path):
    cover, film = (av.VideoFrame.from_ndarray(p, format="rgb24") for p in (corner(), greys(1)[0]))
    for name, with_film in (("both.mp4", True), ("cover.mp4", False)):
        with av.open(str(tmp_path / name), "w") as file:
            streams = [(file.add_stream("mjpeg", rate=1), cover, "yuvj420p")]
            streams[0][0].disposition = Disposition.attached_pic
            if with_film:
                streams.append((file.add_stream("libx264", rate=12), film, "yuv420p"))
            for stream, frame, pix_fmt in streams:
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, pix_fmt
            for stream, frame, _ in streams:
                file.mux(stream.encode(frame))
                file.mux(stream.encode(None))
    content = (tmp_path / "both.mp4").read_bytes()
    start, end = content.index(b"trak") - 4, content.index(b"udta") - 4
    length = int.from_bytes(content[end : end + 4], "big")
    moved = content[:start] + content[end : end + length] + content[start:end]
    (tmp_path / "both.mp4").write_bytes(moved + content[end + length :])
    with av.open(str(tmp_path / "both.mp4")) as file:
        assert file.streams.video[0].disposition & Disposition.attached_pic
    assert numbers(read_video(tmp_path / "both.mp4").frames) == [0]
    with pytest.raises(ConfigError, match="it has no video stream"):
        read_video(tmp_path / "cover.mp4")


@pytest.fixture
def gap(tmp_path):
    """A film with a frame after three years of stillness."""
    return write(tmp_path / "gap.mkv", greys(5), times=[0.0, 0.1, 0.2, 1e8, 1e8 + 0.1])


def test_a_gap_costs_no_more_than_the_result(gap):
    assert numbers(read_video(gap, 10.0, last_frames=3).frames) == [2, 3, 4]
    assert numbers(decode_clip(gap, 0.0, 6, 10.0, (32, 48))) == [0, 1, 2, 2, 2, 2]
    with pytest.raises(ConfigError, match=r"gap.mkv has 1000000\d+ frames or more.*2 GB"):
        read_video(gap, 10.0)
    assert MAX_BYTES < 1e9 * 32 * 48 * 3
    with pytest.raises(Unusable, match="5 frames in 1e.08 s, fewer than one per second"):
        seconds(gap)


def test_large_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", greys(3))
    monkeypatch.setattr(film_module, "MAX_PIXELS", 32 * 48 - 1)
    monkeypatch.setattr(media.Film, "shown", None)
    with pytest.raises(ConfigError, match="frames of 48x32 have over 1,535 pixels"):
        read_video(path, RATE)


@pytest.mark.parametrize("fps", [0.0, 0.5, 241.0, float("inf"), float("nan"), -12.0])
def test_rates_that_no_film_has_are_refused(tmp_path, fps):
    path = write(tmp_path / "a.mp4", greys(3))
    with pytest.raises(ConfigError, match=r"fps is .*from 1 to 240"):
        read_video(path, fps)
