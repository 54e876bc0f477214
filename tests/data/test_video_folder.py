"""The user's own videos: what is read, what is left out, and that nothing crashes."""

import json
import shutil
import struct
from fractions import Fraction

import numpy as np
import pytest

from jvdm.data.host import HostBatches
from jvdm.data.video_files import Unusable, decode_clip, seconds
from jvdm.data.video_folder import QUARANTINE, VideoFolder
from jvdm.errors import CheckpointError, ConfigError
from jvdm.text.tokenizer import WordTokenizer

av = pytest.importorskip("av")
pytest.importorskip("grain")

HEIGHT, WIDTH, RATE = 24, 32, 12


def write(
    path, num_frames=24, rate: int | Fraction = RATE, height=HEIGHT, width=WIDTH, keyframes=6
):
    """Writes frames whose grey value tells their number: 8, 16, 24, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "4", "g": str(keyframes)}
        for number in range(num_frames):
            pixels = np.full((height, width, 3), grey(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def grey(number):
    return 8 * (number + 1)


def numbers(video):
    """Reads the frame numbers back from the centre of the pictures."""
    centre = video[:, video.shape[1] // 2, video.shape[2] // 2].astype(float).mean(-1)
    return np.round(centre / 8 - 1).astype(int).tolist()


def caption(path, text="a red ball rolls to the left"):
    path.with_suffix(".txt").write_text(text)
    return path


def folder(path, **settings):
    base = {"height": 16, "width": 16, "num_frames": 5, "fps": 12.0, "max_bad": 0.9}
    return VideoFolder(path, WordTokenizer(), **(base | settings))


def two_folders(path):
    for name in ("videos", "work"):
        (path / name).mkdir()
    return path / "videos", path / "work"


def clip(records, index):
    record = records[index]
    assert record is not None
    return record


def reasons(workdir):
    lines = (workdir / QUARANTINE).read_text().splitlines()
    return {json.loads(line)["file"].split("/")[-1]: json.loads(line)["reason"] for line in lines}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.mark.parametrize(
    ("start", "count", "fps", "expected"),
    [
        (0.0, 6, 12.0, [0, 1, 2, 3, 4, 5]),
        (0.0, 6, 6.0, [0, 2, 4, 6, 8, 10]),
        (0.0, 6, 24.0, [0, 0, 1, 1, 2, 2]),
        (0.0, 5, 8.0, [0, 1, 3, 4, 6]),
        (10 / 12, 4, 12.0, [10, 11, 12, 13]),
        (20 / 12, 4, 12.0, [20, 21, 22, 23]),
        (1.5, 3, 4.0, [18, 21, 23]),
    ],
)
def test_the_frame_shown_at_each_instant_is_taken(film, start, count, fps, expected):
    if expected[-1] == 23 and fps == 4.0:  # the third instant is at 2.0 s, the end of the film
        with pytest.raises(Unusable, match="only 2 of 3 frames"):
            decode_clip(film, start, count, fps, (8, 8))
        return
    assert numbers(decode_clip(film, start, count, fps, (8, 8))) == expected


def paint(path, size, white):
    """Writes five black frames with a white part."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[white] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_the_centre_is_cropped_to_the_wanted_shape(tmp_path):
    path = paint(tmp_path / "wide.mp4", (32, 96), (slice(None), slice(32, 64)))
    video = decode_clip(path, 0.0, 5, 12.0, (16, 16))
    assert video.shape == (5, 16, 16, 3) and video.dtype == np.uint8
    assert video[:, 2:14, 2:14].mean() > 243


def test_a_picture_that_was_filmed_sideways_is_set_upright(tmp_path):
    """Phones store a rotation in the track header: here 90 degrees clockwise."""
    path = paint(tmp_path / "phone.mp4", (32, 64), (slice(None), slice(0, 32)))
    one, content = 1 << 16, path.read_bytes()
    upright, turned = (
        struct.pack(">9i", *matrix)
        for matrix in (
            (one, 0, 0, 0, one, 0, 0, 0, 1 << 30),
            (0, one, 0, -one, 0, 0, 0, 0, 1 << 30),
        )
    )
    header = content.index(b"tkhd")
    path.write_bytes(content[:header] + content[header:].replace(upright, turned, 1))
    video = decode_clip(path, 0.0, 5, 12.0, (32, 16)).astype(float)
    assert video[:, :12].mean() > 240 and video[:, 20:].mean() < 15  # left has become top


def test_each_video_gives_its_successive_clips_with_its_caption(tmp_path):
    caption(write(tmp_path / "b.mp4", 24))
    caption(write(tmp_path / "sub" / "c.mp4", 11), "two blue cans rest")
    records = folder(tmp_path).open()
    assert len(records) == 4 + 2 and records.shape == (5, 16, 16)
    shown = [numbers(clip(records, index)["video"]) for index in range(6)]
    assert shown == [list(range(n, n + 5)) for n in (0, 5, 10, 15, 0, 5)]
    assert clip(records, 4)["caption"] == "two blue cans rest"
    expected, _ = WordTokenizer().encode("two blue cans rest")
    np.testing.assert_array_equal(clip(records, 4)["tokens"], expected)
    assert len(folder(tmp_path, clips_per_video=1).open()) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text\na.mp4,a red ball\nsub/b.mp4,a blue box\n"),
        ("metadata.csv", "\ufeffprompt,video\na red ball,a.mp4\na blue box,sub/b.mp4\n"),
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "caption": "a red ball"}\n\n'
            '{"file_name": "sub/b.mp4", "caption": "a blue box"}\n',
        ),
    ],
)
def test_captions_from_a_table(tmp_path, name, content):
    for video in ("a.mp4", "sub/b.mp4", "c.mp4"):
        write(tmp_path / video, 5)
    (tmp_path / name).write_text(content, encoding="utf-8")
    records = folder(tmp_path).open()
    captions = [clip(records, index)["caption"] for index in range(len(records))]
    assert captions == ["a red ball", "a blue box"]


BALL = "a café’s red ball"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le-bom", "utf-16-be-bom"]
)
def test_captions_are_read_in_the_encodings_that_people_save(tmp_path, encoding):
    mark = {"utf-16-le-bom": b"\xff\xfe", "utf-16-be-bom": b"\xfe\xff"}.get(encoding, b"")
    content = mark + f" {BALL}\r\n".encode(encoding.removesuffix("-bom"))
    write(tmp_path / "a.mp4", 5).with_suffix(".txt").write_bytes(content)
    assert clip(folder(tmp_path, max_unknown=1.0).open(), 0)["caption"] == BALL
    for name, table in (
        ("metadata.csv", f"file_name,text\r\na.mp4,{BALL}\r\n"),
        ("metadata.jsonl", json.dumps({"file_name": "a.mp4", "text": BALL}, ensure_ascii=False)),
    ):
        path = tmp_path / name
        path.write_bytes(mark + table.encode(encoding.removesuffix("-bom")))
        assert clip(folder(tmp_path, max_unknown=1.0).open(), 0)["caption"] == BALL
        path.unlink()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a red \x81 ball", "a.txt is no text in UTF-8 or code page 1252"),
        ("a red \ufffd ball".encode(), "characters that were lost"),
        (b"a red \0 ball", "characters that were lost"),
        (b"\xff\xfea", "is no text in UTF-8 or code page 1252"),
    ],
)
def test_captions_that_cannot_be_read_are_left_out(tmp_path, content, reason):
    videos, workdir = two_folders(tmp_path)
    write(videos / "a.mp4", 5).with_suffix(".txt").write_bytes(content)
    caption(write(videos / "b.mp4", 5))
    assert len(folder(videos).open(workdir)) == 1
    assert reason in reasons(workdir)["a.mp4"]


def test_files_of_the_system_are_no_videos_and_endings_have_any_case(tmp_path):
    write(tmp_path / "A.MP4".lower(), 5).rename(tmp_path / "A.MP4")
    (tmp_path / "A.TXT").write_text("a red ball")
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._A.MP4", "._A.TXT", "__MACOSX/A.MP4", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"resources of a Macintosh")
    records = folder(tmp_path, max_bad=0.0).open()
    assert len(records) == 1 and clip(records, 0)["caption"] == "a red ball"
    (tmp_path / "Metadata.CSV").write_text("file_name,text\nA.MP4,a blue box\n")
    assert clip(folder(tmp_path, max_bad=0.0).open(), 0)["caption"] == "a blue box"


def test_a_table_with_cells_that_are_no_text_leaves_these_out(tmp_path):
    videos, workdir = two_folders(tmp_path)
    rows = [("a.mp4", "a red ball"), ("b.mp4", ["a", "red", "ball"]), ("c.mp4", 7), (3, "a box")]
    for name in "abc":
        write(videos / f"{name}.mp4", 5)
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (videos / "metadata.jsonl").write_text("\n".join(lines))
    assert len(folder(videos).open(workdir)) == 1
    assert reasons(workdir) == {
        "b.mp4": "it has no caption",
        "c.mp4": "it has no caption",
        "metadata.jsonl row 4": "there is no such file",
    }


def test_a_film_of_one_still_is_left_out_whatever_its_header_promises(tmp_path):
    videos, workdir = two_folders(tmp_path)
    caption(write(videos / "a.mp4", 5))
    caption(write(videos / "b.mp4", 5, rate=Fraction(1, 100)))
    assert len(folder(videos).open(workdir)) == 1
    assert "fewer than one per second" in reasons(workdir)["b.mp4"]


def test_a_rate_that_no_film_has_is_refused(tmp_path):
    caption(write(tmp_path / "a.mp4", 5))
    for fps in (0.0, 0.5, 300.0):
        with pytest.raises(ConfigError, match="fps of the folder is .*from 1 to 240"):
            folder(tmp_path, fps=fps).open()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metadata.csv": b"file_name,text\na.mp4,\x81\n"}, "is no table.*save it as UTF-8"),
        ({"metadata.csv": "file_name,text\na.mp4," + "x" * 200_000}, "is no table.*field larger"),
        ({"metadata.jsonl": "[" * 100_000 + "\n"}, "line 1 is not JSON"),
        ({"metadata.csv": "name,words\na.mp4,ball\n"}, "columns name, words.*file_name.*text"),
        ({"metadata.jsonl": "{oops\n"}, "line 1 is not JSON"),
        ({"metadata.jsonl": "[1]\n"}, "line 1 is not a JSON object"),
        ({"metadata.csv": "a\n", "metadata.jsonl": "{}\n"}, "one of them must say it all"),
        ({"notes.md": "nothing"}, "no usable video.*metadata.csv"),
        ({"metadata.csv": "file_name,text\n"}, "no usable video"),
    ],
)
def test_a_folder_that_cannot_be_understood_is_an_error(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path).open()


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        folder(tmp_path / "nowhere").open()


def spoil(tmp_path):
    """One good video and one of every kind of bad one."""
    caption(write(tmp_path / "good.mp4", 10))
    write(tmp_path / "silent.mp4", 10)
    caption(write(tmp_path / "short.mp4", 3))
    caption(write(tmp_path / "wordy.mp4", 10), "ball " * 80)
    caption(tmp_path / "empty.mp4").write_bytes(b"")
    caption(tmp_path / "text.mp4").write_text("this is no video")
    caption(tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:300])
    with av.open(str(caption(tmp_path / "sound.mp4")), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_bad_files_are_listed_with_the_reason_and_the_rest_is_used(tmp_path, capsys):
    videos, workdir = two_folders(tmp_path)
    spoil(videos)
    records = folder(videos).open(workdir)
    assert [numbers(clip(records, index)["video"]) for index in range(2)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]
    found = reasons(workdir)
    assert found.keys() == {path.name for path in videos.glob("*.mp4")} - {"good.mp4"}
    assert found["silent.mp4"] == "it has no caption"
    assert found["short.mp4"] == "it has 3 frames at 12 fps, 5 are needed"
    assert "80 tokens" in found["wordy.mp4"]
    assert found["sound.mp4"] == "it has no video stream"
    for name in ("empty.mp4", "text.mp4", "cut.mp4"):
        assert "cannot be decoded" in found[name] or "no video stream" in found[name], found
    assert f"7 of 8 videos are left out; the reasons are in {workdir}" in capsys.readouterr().err


def test_more_bad_files_than_the_limit_is_an_error(tmp_path):
    spoil(tmp_path)
    with pytest.raises(ConfigError, match="7 of 8 videos are unusable.*max_bad"):
        folder(tmp_path, max_bad=0.5).open()


def test_words_outside_the_vocabulary_are_counted_shown_and_limited(tmp_path, capsys):
    texts = ("a red ball", "a dog and a dog", "a pink dog", "a blue box")
    for number, text in enumerate(texts):
        caption(write(tmp_path / f"{number}.mp4", 5), text)
    folder(tmp_path).open()
    said = "2 of 4 captions have words that the model does not know"
    assert f"{said}: most often dog (2), pink (1)\n" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"{said}; most often dog.*max_unknown"):
        folder(tmp_path, max_unknown=0.4).open()
    (tmp_path / "1.txt").write_text("a can")
    (tmp_path / "2.txt").write_text("a can")
    folder(tmp_path, max_unknown=0.0).open()
    assert "captions" not in capsys.readouterr().err


def damaged(tmp_path):
    """Three videos; the middle one is a download that broke off behind the header."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        caption(write(tmp_path / name, 10))
    content = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(content[: content.index(b"mdat") + 30])
    assert seconds(tmp_path / "b.mp4") > 0.8


def test_for_a_video_that_breaks_while_training_the_next_clip_stands(tmp_path):
    videos, workdir = two_folders(tmp_path)
    damaged(videos)
    records = folder(videos).open(workdir)
    assert len(records) == 6 and not reasons(workdir)
    batches = HostBatches(records, 2, None, 2)
    shown = [numbers(clip)[0] for _ in range(4) for clip in next(batches)["video"]]
    assert shown == [0, 5, 0, 0, 0, 5, 0, 5]  # the four of a and c, and its first one for b's two
    assert reasons(workdir).keys() == {"b.mp4"}


def test_too_many_that_break_while_training_end_the_run_with_the_reason(tmp_path):
    damaged(tmp_path)
    batches = HostBatches(folder(tmp_path, max_bad=0.1).open(), 2, None, 2)
    with pytest.raises(ConfigError, match="1 of 3 videos are unusable.*b.mp4"):
        for _ in range(3):
            next(batches)


def test_batches_of_a_folder_continue_exactly_and_not_in_a_changed_folder(tmp_path):
    for number in range(3):
        caption(write(tmp_path / f"{number}.mp4", 10 + number, height=24 + 8 * number))
    whole = HostBatches(folder(tmp_path).open(), 2, 0, 2)
    next(whole)
    saved = whole.saved()
    expected = [next(whole) for _ in range(4)]
    again = HostBatches(folder(tmp_path).open(), 2, 0, 1, saved)
    for one in expected:
        other = next(again)
        np.testing.assert_array_equal(one["video"], other["video"])
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
    shutil.copy(tmp_path / "0.mp4", tmp_path / "3.mp4")
    caption(tmp_path / "3.mp4")
    with pytest.raises(CheckpointError, match="files were added"):
        HostBatches(folder(tmp_path).open(), 2, 0, 1, saved)
