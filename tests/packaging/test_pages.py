"""README, changelog and citation: what they name is there, and the moving picture is made."""

import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.architecture.source import ROOT

README = (ROOT / "README.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MOST_BYTES = 300_000  # of all pictures of the README
MOST_LINES = 2_500  # of the ten files to read


def test_every_file_that_a_page_links_to_is_there():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (ROOT / link).exists(), f"{page}: {link}"
        for path in re.findall(r"`((?:jvdm|configs|tests|pallas_kernels)/[\w/]+\.\w+)`", text):
            assert "NAME" in path or (ROOT / path).exists(), f"{page}: {path}"


def test_the_ten_files_to_read_are_there_and_short():
    (sentence,) = re.findall(r"Read these files in this order: (.*?)\.\n\n", README, re.DOTALL)
    paths = [ROOT / name for name in re.findall(r"`([^`]+)`", sentence)]
    assert len(paths) == len(set(paths)) == 10
    assert sum(len(path.read_text().splitlines()) for path in paths) < MOST_LINES


def test_pictures_are_small_and_move():
    pictures = [ROOT / name for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)]
    assert sum(path.stat().st_size for path in pictures) <= MOST_BYTES
    with Image.open(pictures[0]) as moving:
        assert getattr(moving, "n_frames", 1) == 33


@pytest.mark.slow
def test_the_command_of_the_picture_makes_one(tmp_path):
    import notebooks.images.samples as samples

    settings = {"num_inference_steps": 1, "progress": False}
    made = samples.write(tmp_path / "two.webp", "nano", 2, **settings)
    with Image.open(made) as moving:
        assert moving.size == (64 + samples.GAP + 64, 64)
        assert getattr(moving, "n_frames", 1) == 9
    assert len(set(samples.prompts(2))) == 2
    clips = [np.full((2, 3, 3, 3), value, np.uint8) for value in (1, 2, 3, 4)]
    grid = samples.grid(clips, 2)
    assert grid.shape == (2, 6 + samples.GAP, 6 + samples.GAP, 3)
    assert grid[1, 0, -1, 0] == 2 and grid[1, -1, 0, 0] == 3 and grid[0, 3, 0, 0] == 255


def test_the_citation_has_what_its_schema_requires():
    fields = dict(re.findall(r"^([\w-]+): *(.*)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert {"cff-version", "message", "title", "authors", "type"} <= set(fields)
    assert fields["cff-version"] == "1.2.0" and fields["type"] == "software"
    assert fields["version"] == VERSION and fields["license"] == "Apache-2.0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", fields["date-released"])
    assert re.search(r"^authors:\n  - name: \S", (ROOT / "CITATION.cff").read_text(), re.M)


def test_the_changelog_has_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([^]]+)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased" and VERSION in versions
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
    tags = subprocess.run(["git", "tag"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {tag.removeprefix("v") for tag in tags if Path(tag).name == tag} <= set(versions)
