"""Where `--output` puts the files of a run, and what is said when it stops half-way."""

from pathlib import Path

import pytest

from jvdm import outputs
from jvdm.errors import ConfigError
from jvdm.record import Record


@pytest.mark.parametrize(
    ("output", "video"),
    [
        ("out", "out/ball.mp4"),
        ("out/x.mp4", "out/x.mp4"),
        ("out/x.webm", "out/x.webm"),
        ("out/x.gif", "out/x.gif"),
        ("up.MP4", "up.MP4"),
        ("2027.01.02", "2027.01.02/ball.mp4"),
        ("~/x.gif", "{home}/x.gif"),
        ("~", "{home}/ball.mp4"),
        ("{home}/folder.mov", "{home}/folder.mov/ball.mp4"),
    ],
)
def test_the_video_is_where_it_was_asked_for(tmp_path, monkeypatch, output, video):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder.mov").mkdir()
    names = outputs.named(Path(output.format(home=tmp_path)), "ball")
    assert names.video == Path(video.format(home=tmp_path))
    assert names.sheet == names.video.with_suffix(".png")


@pytest.mark.parametrize("ending", [".mov", ".avi", ".png", ".txt", ".MKV", ".v2"])
def test_endings_that_are_not_written_are_refused(ending):
    message = rf"--output ends in {ending}; videos are written as .mp4, .webm, .gif; .*a/x.mp4"
    with pytest.raises(ConfigError, match=message):
        outputs.named(Path(f"a/x{ending}"), "ball")


def test_several_videos_have_names_that_no_other_run_gets(tmp_path):
    seeds = {0: 7, 1: 8}
    again = outputs.reserved(tmp_path, "ball", {0: 7})
    with outputs.reserved(tmp_path, "ball", seeds) as one, again as other:
        assert [files.stem for files in one.values()] == ["ball_7", "ball_8"]
        assert other[0].stem == "ball_7-2"
    with outputs.reserved(tmp_path / "x.gif", "ball", seeds) as named:
        assert [files.video.name for files in named.values()] == ["x_7.gif", "x_8.gif"]
    with outputs.reserved(tmp_path / "x.gif", "ball", {0: 7}) as named:
        assert named[0].video.name == "x.gif"
    assert not list(tmp_path.iterdir())


def test_a_name_is_taken_if_any_of_its_files_is_there(tmp_path):
    for suffix in outputs.SUFFIXES:
        (tmp_path / f"ball{suffix}").touch()
        with outputs.reserved(tmp_path / "ball.gif", "", {0: 7}) as files:
            assert files[0].stem == "ball-2"
        (tmp_path / f"ball{suffix}").unlink()


def test_the_encoder_of_the_ending_is_tried(tmp_path, monkeypatch):
    for ending in (".mp4", ".webm", ".gif"):
        outputs.probe(outputs.named(tmp_path / f"x{ending}", ""))
    monkeypatch.setitem(outputs.WRITERS, ".webm", lambda *_: 1 / 0)
    outputs.probe(outputs.named(tmp_path / "x.mp4", ""))
    with pytest.raises(ZeroDivisionError):
        outputs.probe(outputs.named(tmp_path / "x.webm", ""))
    assert not list(tmp_path.iterdir())


def record(status):
    return Record({}, {}, {}, {}, {}, {"latents": "my folder/a.latents.safetensors"}, status=status)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError("full"), MemoryError])
def test_what_can_be_finished_is_said_whatever_stops_a_run(capsys, error):
    saved = {0: record("latents"), 1: record("done")}
    expected = type(error) if isinstance(error, Exception) else error
    with pytest.raises(expected), outputs.finishable(saved):
        raise error
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("jvdm decode 'my folder/a.latents.safetensors'")


def test_nothing_is_said_when_all_is_done(capsys):
    with outputs.finishable({0: record("latents")}):
        pass
    assert not capsys.readouterr().err


def test_a_listing_says_what_to_do_next():
    assert "jvdm decode 'my folder" in outputs.listing(record("latents").as_data())
    assert "jvdm decode" not in outputs.listing(record("done").as_data())
