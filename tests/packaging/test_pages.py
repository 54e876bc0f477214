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
MOST_LINES = 2_600  # of the ten files to read
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = (ROOT / "README.md", *DOCS)
LONGEST, FIVE_MINUTES = 100, 180  # characters of a line; lines that are read before the systems


def lines_of(page: Path) -> list[str]:
    """Returns the lines of a page that are no rows of a table."""
    return [line for line in page.read_text().splitlines() if not line.startswith("|")]


def test_every_file_that_a_page_links_to_is_there():
    for page in (*(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")), *PAGES):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"
        for path in re.findall(r"`((?:jvdm|configs|tests|pallas_kernels)/[\w/]+\.\w+)`", text):
            assert "NAME" in path or (ROOT / path).exists(), f"{page}: {path}"


def test_the_readme_leads_to_every_page_and_is_short():
    links = set(re.findall(r"\]\((docs/[^)]+)\)", README))
    assert links == {f"docs/{page.name}" for page in DOCS}
    before, _, _ = README.partition("\n## Published systems")
    assert len(before.splitlines()) <= FIVE_MINUTES
    for page in PAGES:
        long = [line for line in lines_of(page) if len(line) > LONGEST]
        assert not long, f"{page.name}: {long[0]}"


def measured(text: str) -> list[tuple[str, str]]:
    """Returns the tables of a page with numbers, each with the paragraph or heading before it."""
    blocks = re.split(r"\n\n", text)
    pairs = zip(blocks, blocks[1:], strict=False)
    return [(before, table) for before, table in pairs if table.startswith("|") and digits(table)]


def digits(table: str) -> bool:
    """Whether most rows of a table have a number of their own, outside of code and links."""
    rows = [re.sub(r"`[^`]*`|\([^)]*\)|\[[^]]*\]", "", row) for row in table.splitlines()[2:]]
    return sum(bool(re.search(r"\d", row)) for row in rows) > len(rows) / 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_line_of_results_has_its_command(page):
    """In the line, in the head of its table, or in the paragraph before it."""
    command = re.compile(r"`[^`]*(?:jvdm|python -m)\s[^`]*`|configs/systems/NAME")
    for before, table in measured(page.read_text()):
        head, _, *rows = table.splitlines()
        for row in rows:
            assert any(map(command.search, (before, head, row))), f"{page.name}: {row[:80]}"


def test_a_table_without_a_command_is_found():
    text = "Fast.\n\n| a | b |\n|---|---|\n| speed | 12 ms |\n"
    ((before, table),) = measured(text)
    assert before == "Fast." and "12 ms" in table
    assert not measured(text.replace("12 ms", "`jvdm2`"))


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
