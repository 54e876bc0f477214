"""Notebooks are stored without outputs, begin with the installation, and run on CPU."""

import json
import re

import pytest

from tests.architecture.source import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_SECONDS = 600
MAX_LINES = 25  # of a cell
MAX_SECONDS = 90  # of processors, which other processes of the machine do not change

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(path) -> list[dict]:
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@each_notebook
def test_outputs_are_stripped(path):
    for cell in code_cells(path):
        assert not cell["outputs"]
        assert cell["execution_count"] is None


@each_notebook
def test_the_first_cell_installs_and_the_second_diagnoses(path):
    first, second = code_cells(path)[:2]
    assert "install" in first["metadata"].get("tags", ()), "CI leaves out cells with this tag"
    assert "pip install" in "".join(first["source"])
    assert "jvdm.doctor()" in "".join(second["source"])


@each_notebook
def test_cells_are_short_and_a_sentence_comes_before_each(path):
    cells = json.loads(path.read_text())["cells"]
    for before, cell in zip(cells, cells[1:], strict=False):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "jvdm.doctor()" in source:
            continue
        assert before["cell_type"] == "markdown", f"{cell['id']} comes without a sentence"
        assert len(source.splitlines()) <= MAX_LINES, f"{cell['id']} is long"
    assert len({cell["id"] for cell in cells}) == len(cells)


def shown(notebook) -> list[str]:
    """Returns the kinds of pictures and films that its cells show, within the notebook."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found += [kind for kind in data if kind.startswith(("image/", "video/"))]
            inline = re.findall(r"<(?:video|img)\b[^>]*?src=.data:", data.get("text/html", ""))
            found += ["text/html"] * len(inline)
    return found


@pytest.mark.slow
@pytest.mark.notebook
@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [
        cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())
    ]
    notebook.cells.append(nbformat.v4.new_code_cell("import os; sum(os.times()[:4])"))
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert shown(notebook), f"{path.name} shows no picture"
    spent = float(notebook.cells[-1]["outputs"][0]["data"]["text/plain"])
    assert spent < MAX_SECONDS, f"{path.name} took {spent:.0f} s of processors"
    print(f"{path.name}: {spent:.0f} s of processors")
