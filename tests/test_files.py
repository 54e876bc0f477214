"""Files appear whole, names overwrite nothing."""

import pytest

from jvdm import files
from jvdm.errors import ConfigError


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written.*--output"):
        files.probe_writable(tmp_path / "file" / "below")


def test_probe_makes_the_folder_and_leaves_it_empty(tmp_path):
    files.probe_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_names_count_up_over_all_suffixes(tmp_path):
    (tmp_path / "ball.mp4").touch()
    (tmp_path / "ball-2.json").touch()
    assert files.unused_stem(tmp_path, "ball", [".mp4", ".json"]) == "ball-3"
    assert files.unused_stem(tmp_path, "ball", [".png"]) == "ball"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A large, red ball!", "a_large_red_ball"),
        ("", "video"),
        ("../../etc", "etc"),
        ("?", "video"),
    ],
)
def test_slugs_are_plain_names(text, name):
    assert files.slug(text) == name


def test_slugs_are_short():
    assert len(files.slug("word " * 100)) <= files.SLUG_LENGTH
