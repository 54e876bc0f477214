"""Files, functions and argument lists stay small enough to read."""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.source import Module, planted, project

MODULE_LINES = 500
MAIN_PATH_LINES = 150
MAIN_PATHS = ("jvdm/generate.py", "jvdm/train.py")
FUNCTION_LINES = 60  # without the docstring
KERNEL_LINES = 150  # bodies of Pallas kernels
PARAMETERS = 8
VAGUE_NAMES = {"common", "helpers", "misc", "util", "utils"}

# Methods that speak the language of other libraries, with the names their users know.
MANY_PARAMETERS = {"jvdm/pipeline/pipeline.py:__call__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: Module) -> Iterator[Function]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node


def code_lines(function: Function) -> int:
    """Counts the lines of a function without its docstring."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def parameters(function: Function) -> int:
    arguments = function.args
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([argument for argument in found if argument.arg not in ("self", "cls")])


def too_large(module: Module) -> list[str]:
    found = []
    lines = len(module.text.splitlines())
    limit = MAIN_PATH_LINES if module.path in MAIN_PATHS else MODULE_LINES
    if lines > limit:
        found.append(f"{module.path} has {lines} lines, limit {limit}")
    for function in functions(module):
        where = f"{module.path}:{function.lineno} {function.name}"
        is_kernel = module.path.startswith("pallas_kernels") and function.name.endswith("_kernel")
        limit = KERNEL_LINES if is_kernel else FUNCTION_LINES
        if code_lines(function) > limit:
            found.append(f"{where} has {code_lines(function)} lines of code, limit {limit}")
        allowed = f"{module.path}:{function.name}" in MANY_PARAMETERS
        if parameters(function) > PARAMETERS and not allowed:
            found.append(f"{where} has {parameters(function)} parameters, limit {PARAMETERS}")
    return found


@pytest.mark.parametrize("folder", ["jvdm", "pallas_kernels", "configs", "tests"])
def test_nothing_is_too_large(folder):
    assert not [finding for module in project(folder) for finding in too_large(module)]


@pytest.mark.parametrize(
    "module",
    [
        planted("x = 1\n" * 501),
        planted("x = 1\n" * 151, path="jvdm/train.py"),
        planted("def f():\n" + "    x = 1\n" * 60),
        planted("def f(a, b, c, d, e, f, g, h, *, i): ..."),
    ],
    ids=["module", "main path", "function", "parameters"],
)
def test_what_is_too_large_is_found(module):
    assert len(too_large(module)) == 1


def test_a_long_docstring_is_no_long_function():
    text = 'def f():\n    """Does it.\n' + "    More.\n" * 70 + '    """\n    return 1\n'
    assert not too_large(planted(text))


@pytest.mark.parametrize("folder", ["jvdm", "pallas_kernels", "configs", "tests"])
def test_every_name_says_what_is_inside(folder):
    for module in project(folder):
        assert not VAGUE_NAMES & set(module.name.split(".")), module.path
