"""Notebooks are stored without outputs, begin with the installation, and run on CPU."""

import json

import pytest

from tests.architecture.source import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_SECONDS = 600

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
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
