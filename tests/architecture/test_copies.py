"""No code is there twice: runs of equal lines in two files stay short and rare."""

import ast
from collections import defaultdict

from tests.architecture.source import Module, planted, project

RUN = 10  # lines; a longer run must not exist, runs of this length are counted
BUDGET = 0.02  # share of all code lines

Position = tuple[int, int]  # index of the file, index of the code line


def code(module: Module) -> list[tuple[int, str]]:
    """Returns number and stripped text of the lines that are code.

    Blank lines, comments, docstrings and imports are left out.
    """
    skipped: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Expr | ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(module.text.splitlines(), start=1)
    kept = [(number, line.strip()) for number, line in lines if number not in skipped]
    return [(number, line) for number, line in kept if line and not line.startswith("#")]


def copied(modules: tuple[Module, ...], length: int) -> dict[Position, list[Position]]:
    """Returns where a run of `length` equal lines begins that another file has too."""
    places: dict[tuple[str, ...], list[Position]] = defaultdict(list)
    for file, module in enumerate(modules):
        lines = [line for _, line in code(module)]
        for start in range(len(lines) - length + 1):
            places[tuple(lines[start : start + length])].append((file, start))
    shared = [found for found in places.values() if len({file for file, _ in found}) > 1]
    return {place: found for found in shared for place in found}


def long_copies(modules: tuple[Module, ...]) -> list[str]:
    """Names every place where more than `RUN` lines are equal to those of another file."""
    found = []
    for (file, start), places in copied(modules, RUN + 1).items():
        number = code(modules[file])[start][0]
        others = {modules[other].path for other, _ in places if other != file}
        found.append(f"{modules[file].path}:{number} is also in {', '.join(sorted(others))}")
    return sorted(found)


def copied_share(modules: tuple[Module, ...]) -> float:
    """Returns the share of code lines that lie in a run of `RUN` copied lines."""
    marked = {
        (file, start + offset) for file, start in copied(modules, RUN) for offset in range(RUN)
    }
    return len(marked) / max(1, sum(len(code(module)) for module in modules))


EVERYTHING = ("jvdm", "pallas_kernels", "configs", "tests", "launch")


def test_no_long_run_is_copied():
    assert not long_copies(project(*EVERYTHING))


def test_few_lines_are_copied():
    assert copied_share(project(*EVERYTHING)) <= BUDGET


def test_copies_are_found():
    lines = [f"x{number} = compute({number})" for number in range(RUN + 1)]
    one = planted("\n".join(["import jax", *lines]), path="one.py")
    two = planted("# comment\n" + "\n\n".join(f"{line}" for line in lines), path="two.py")
    three = planted("\n".join([*lines[:RUN], "other = 1"]), path="three.py")
    assert long_copies((one, two)) == ["one.py:2 is also in two.py", "two.py:2 is also in one.py"]
    assert not long_copies((one, three))
    assert copied_share((one, three)) == 2 * RUN / (2 * RUN + 2)
