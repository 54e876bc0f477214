"""Finds loops over noise levels, by what their bodies can reach.

A loop is a `for`, a `while`, a comprehension, or a call of `scan`, `fori_loop`,
`while_loop`, `map`, `reduce` or `accumulate`. It is a loop over noise levels if its body
- reaches, directly or through functions of jvdm, a step of sampling: `solver.step(...)`,
  a call of a denoiser, or `advance(...)` of `samplers/sampler.py`; or
- applies a network and speaks of levels, as a sampler written by hand would.
A loop around whole runs (`sample(...)`, one per prompt) is none.
"""

import ast
import functools
from collections.abc import Iterator

from tests.architecture.source import Module, imports

HOME = "jvdm.samplers.sampler"
LOOP_NODES = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
LOOP_NODES += (ast.GeneratorExp,)
LOOP_CALLS = {"scan", "fori_loop", "while_loop", "map", "reduce", "accumulate"}
LOOP_CALLS |= {"associative_scan"}
NETWORK_CALLS = {"apply", "predict"}
LEVEL_NAMES = {"levels", "level", "t_next", "sigmas", "timesteps", "matrix", "TimestepMatrix"}


def loops_over_levels(module: Module, others: tuple[Module, ...]) -> list[int]:
    """Returns the lines of `module` where a loop over noise levels begins.

    Args:
        module: The module to look at.
        others: The modules into which calls are followed.
    """
    modules = {other.name: other for other in (*others, module)}
    lines = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.expr | ast.stmt) or not _is_loop(node):
            continue
        if _reaches_step(node, module, modules) or _is_by_hand(node):
            lines.append(node.lineno)
    return lines


def _is_loop(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _last_name(node.func) in LOOP_CALLS
    return isinstance(node, LOOP_NODES)


def _is_by_hand(loop: ast.AST) -> bool:
    words = {_last_name(node) for node in ast.walk(loop)}
    calls = {_last_name(node.func) for node in ast.walk(loop) if isinstance(node, ast.Call)}
    return bool(words & LEVEL_NAMES and calls & NETWORK_CALLS)


def _reaches_step(loop: ast.AST, module: Module, modules: dict[str, Module]) -> bool:
    waiting: list[tuple[ast.AST, Module]] = [(loop, module)]
    seen: set[ast.AST] = set()
    while waiting:
        node, home = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and _is_step(inner.func):
                return True
            waiting += _functions_named(inner, home, modules)
    return False


def _is_step(function: ast.expr) -> bool:
    name = _last_name(function)
    owner = _last_name(function.value) if isinstance(function, ast.Attribute) else ""
    if name == "step":
        return "solver" in owner.lower()
    if name == "advance":
        return not owner or "sampler" in owner
    return name in ("denoise", "denoiser")


def _functions_named(
    node: ast.AST, home: Module, modules: dict[str, Module]
) -> Iterator[tuple[ast.AST, Module]]:
    """Yields the functions of jvdm that a name or `self.name` may stand for."""
    own = isinstance(node, ast.Attribute) and _last_name(node.value) in ("self", "cls")
    if not (own or isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
        return
    name = _last_name(node)
    for function in _functions(home).get(name, []):
        yield function, home
    for source in _sources(home).get(name, []):
        if source in modules and source != HOME:
            for function in _functions(modules[source]).get(name, []):
                yield function, modules[source]


@functools.cache
def _sources(module: Module) -> dict[str, list[str]]:
    """Returns from which modules each name is imported."""
    found: dict[str, list[str]] = {}
    for item in imports(module, frozenset()):
        found.setdefault(item.name, []).append(item.module)
    return found


@functools.cache
def _functions(module: Module) -> dict[str, list[ast.AST]]:
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(node.name, []).append(node)
    return found


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
