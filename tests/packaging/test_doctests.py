"""The examples in docstrings run and print what they say."""

import ast
import doctest
import importlib
import io
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

MARK = ">>> "
FILES = sorted(
    path
    for folder in ("jvdm", "pallas_kernels", "configs")
    for path in (ROOT / folder).rglob("*.py")
    if MARK in path.read_text()
)
MET_FIRST = {
    "jvdm": [""],
    "jvdm.video": ["Video"],
    "jvdm.samplers.levels": ["linspace_levels", "shift_levels"],
    "jvdm.samplers.matrices": ["TimestepMatrix", "lag_matrix", "freeze", "cost", "plot"],
    "jvdm.parallel.mesh": ["mesh_of"],
    "pallas_kernels.block_mask": [
        f"BlockMask.{name}" for name in ("from_dense", "from_top", "full", "causal")
    ],
}
"""What a user meets first has an example."""


def module_of(path: Path) -> str:
    """Returns the name by which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    prefix = ("jvdm",) if parts[0] == "configs" else ()
    return ".".join((*prefix, *parts)).removesuffix(".__init__")


def examples(path: Path) -> dict[str, tuple[int, str]]:
    """Returns line and text of the docstrings with examples, by qualified name."""
    found = {}

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            said = ast.get_docstring(node, clean=False) or ""
            if MARK in said:
                found[name] = (node.body[0].lineno - 1, said)
            for inner in node.body:
                if isinstance(inner, ast.ClassDef | ast.FunctionDef):
                    visit(inner, f"{name}.{inner.name}".lstrip("."))

    visit(ast.parse(path.read_text()), "")
    return found


def failures(text: str, module: str, name: str, line: int) -> str:
    """Runs the examples of one docstring in its module; returns what went otherwise."""
    names = dict(vars(importlib.import_module(module)))
    test = doctest.DocTestParser().get_doctest(text, names, f"{module}.{name}", module, line)
    said = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.write)
    assert result.attempted, f"no example was read in {module}.{name}"
    return said.getvalue() if result.failed else ""


@pytest.mark.parametrize("path", FILES, ids=map(module_of, FILES))
def test_examples_print_what_they_say(path):
    found = examples(path)
    assert sum(text.count(MARK) for _, text in found.values()) == path.read_text().count(MARK)
    for name, (line, text) in found.items():
        assert not (said := failures(text, module_of(path), name, line)), said


@pytest.mark.parametrize("module", MET_FIRST)
def test_what_a_user_meets_first_has_an_example(module):
    (path,) = (path for path in FILES if module_of(path) == module)
    assert not set(MET_FIRST[module]) - set(examples(path))


def test_an_example_that_prints_something_else_is_found():
    assert "Got:\n    2" in failures(">>> 1 + 1\n3\n", "jvdm.arrays", "x", 0)
