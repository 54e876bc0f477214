"""Imports go downwards, pallas_kernels stands alone, and no module is left over."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, Import, Module, imports, names, planted, project

LAYERS = (
    ("arrays", "errors"),  # the vocabulary of all others
    (
        "cache",
        "compiling",
        "features",
        "files",
        "keys",
        "machine",
        "media",
        "products",
        "reading",
        "stages",
        "stopping",
        "values",
    ),
    ("recipes", "record"),
    ("flags",),
    ("fidelity", "parallel", "samplers", "video", "weights", "world"),
    ("data", "outputs"),
    ("attention",),
    ("models", "text", "vae"),
    ("system",),
    ("callbacks", "choices", "pricing", "rows", "settings"),
    ("pictures", "prompts"),
    ("pipeline",),
    ("evaluation", "families", "training"),
    ("experiment", "options", "pace", "scaling", "targets"),
    ("comparison", "live", "pattern_search", "works"),
    (
        "bench",
        "convert",
        "decode",
        "diagnosis",
        "evaluate",
        "generate",
        "inspection",
        "methods",
        "plan",
        "policies",
        "profiling",
        "train",
    ),
    ("stream",),
    ("serving",),
    ("", "__main__", "cli", "configs", "overrides"),
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}

KERNEL_IMPORTS = {"jax", "jaxlib", "numpy", "jaxtyping", "pallas_kernels"} | set(
    sys.stdlib_module_names
)

# Programs, and what other projects import: nobody in here needs to import them.
ROOTS = ("jvdm", "jvdm.__main__", "jvdm.cli", "jvdm.configs", "pallas_kernels")


def part(module: str) -> str:
    """Returns the part of jvdm that a module belongs to: `samplers`, `cli`, ..."""
    return (module.split(".") + [""])[1]


def layer_violations(modules: tuple[Module, ...]) -> list[str]:
    found = []
    known = names(project()) | names(modules)
    for module in modules:
        mine = part(module.name)
        if mine not in HEIGHT:
            found.append(f"{module.path}: {mine!r} has no layer; add it to LAYERS")
            continue
        for item in imports(module, known):
            theirs = part(item.module)
            if not item.module.startswith("jvdm") or theirs == mine or mine == "":
                continue
            if item.module == "jvdm" and item.name == "__version__":
                continue
            if mine in ("cli", "__main__") and theirs in LAYERS[-1]:
                continue
            if HEIGHT.get(theirs, len(LAYERS)) >= HEIGHT[mine]:
                found.append(f"{module.path}:{item.line}: {mine} must not import {item.module}")
    return found


def test_imports_go_downwards():
    assert not layer_violations(project("jvdm") + project("configs"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jvdm.samplers.x", "from jvdm.models import stack"),
        ("jvdm.samplers.x", "def f():\n    import jvdm.train"),
        ("jvdm.vae.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import jvdm.text"),
        ("jvdm.text.x", "from jvdm import vae"),
        ("jvdm.data.x", "from jvdm import load"),
        ("jvdm.stray", ""),
    ],
)
def test_the_layer_check_can_fail(name, text):
    assert layer_violations((planted(text, name),))


def test_pallas_kernels_imports_only_jax_numpy_and_jaxtyping():
    modules = project("pallas_kernels")
    assert modules
    for module in modules:
        for item in imports(module, names(modules)):
            where = f"{module.path}:{item.line} imports {item.module}"
            assert item.module.split(".")[0] in KERNEL_IMPORTS, where


def test_pallas_kernels_runs_without_jvdm_and_flax(run_python):
    code = (
        "import sys, pkgutil, importlib, pallas_kernels\n"
        "for m in pkgutil.walk_packages(pallas_kernels.__path__, 'pallas_kernels.'):\n"
        "    importlib.import_module(m.name)\n"
        "assert not {'jvdm', 'flax', 'optax'} & set(sys.modules)"
    )
    run_python("-c", code, check=True)


def documented(package: Module) -> set[str]:
    """Returns the words in code of the package's README, the main one and docs: promises."""
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    pages += (ROOT / Path(package.path).with_name("README.md"),)
    text = "".join(page.read_text() for page in pages if page.is_file())
    return set(re.findall(r"\w+", " ".join(re.findall(r"```.*?```|`[^`]*`", text, re.DOTALL))))


def used(module: Module, known: frozenset[str]) -> list[Import]:
    """Returns what `module` imports and takes from packages, less what it only hands on.

    A package hands on what its `__init__` imports: that is no use, unless the package is a
    program or its README names it.
    """
    found = imports(module, known)
    chains = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
    homes = {alias: home for home, alias in aliases(module, known)}
    for node in chains:
        base, _, name = ast.unparse(node).rpartition(".")
        if homes.get(base, base) in known:
            found.append(Import(homes.get(base, base), name, node.lineno))
    if module.path.endswith("__init__.py") and module.name not in ROOTS:
        names_used = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
        kept = names_used | documented(module)
        found = [item for item in found if (item.name or item.module.rpartition(".")[2]) in kept]
    return found


def aliases(module: Module, known: frozenset[str]) -> list[tuple[str, str]]:
    """Returns the modules that `module` imports by `from package import name [as alias]`."""
    return [
        (f"{node.module}.{name.name}", name.asname or name.name)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if f"{node.module}.{name.name}" in known
    ]


def referenced(module: Module, by_name: dict[str, Module]) -> set[str]:
    """Returns the modules that `module` uses or, lazily, names in a string."""
    known = frozenset(by_name)
    found = {
        node.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    waiting = used(module, known)
    while waiting:
        item = waiting.pop()
        found.add(item.module)
        package = by_name.get(item.module)
        if package and package.path.endswith("__init__.py") and package is not module:
            waiting += [each for each in imports(package, known) if each.name == item.name != ""]
    parents = {name.rsplit(".", count)[0] for name in found & known for count in (1, 2)}
    return (found | parents) & known


def unreachable(modules: tuple[Module, ...]) -> list[str]:
    by_name = {module.name: module for module in modules}
    programs = {module.name for module in modules if 'if __name__ == "__main__"' in module.text}
    waiting = [name for name in by_name if name.startswith("jvdm.configs.") or name in programs]
    waiting += [name for name in ROOTS if name in by_name]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += referenced(by_name[name], by_name)
    return sorted(by_name.keys() - reached)


def test_every_module_is_used():
    assert not unreachable(project()), "used by no program, config or README"


@pytest.mark.parametrize("user", ["", "from jvdm.planted import x", "import jvdm.planted"])
def test_the_use_check_can_fail(user):
    """Two modules that use each other, and one that its package hands on, are no use."""
    dead = (
        planted("from jvdm.dead_two import x", "jvdm.dead_one"),
        planted("from jvdm.dead_one import y", "jvdm.dead_two"),
        planted("from jvdm.planted.dead import z", "jvdm.planted", "jvdm/planted/__init__.py"),
        planted("z = 1", "jvdm.planted.dead"),
        planted(user, "jvdm.configs.user"),
    )
    left = unreachable(project() + dead)
    assert {"jvdm.dead_one", "jvdm.dead_two", "jvdm.planted.dead"} <= set(left)


@pytest.mark.parametrize(
    "user",
    [
        "from jvdm.planted import z",
        "from jvdm import planted as p\nprint(p.z)",
        "import jvdm.planted\nprint(jvdm.planted.z)",
        "import importlib\nimportlib.import_module('jvdm.planted.alive')",
    ],
)
def test_what_is_taken_from_a_package_is_used(user):
    modules = (
        planted("from jvdm.planted.alive import z", "jvdm.planted", "jvdm/planted/__init__.py"),
        planted("z = 1", "jvdm.planted.alive"),
        planted(user, "jvdm.configs.user"),
    )
    assert "jvdm.planted.alive" not in unreachable(project() + modules)


def test_what_a_readme_names_is_used():
    """The README of the world promises views that no program of ours shows."""
    view = "from jvdm.world.views import {}"
    modules = tuple(module for module in project() if module.name != "jvdm.world")
    for name, unused in (("reproject", False), ("Reprojection", True)):
        hands_on = planted(view.format(name), "jvdm.world", "jvdm/world/__init__.py")
        assert ("jvdm.world.views" in unreachable((*modules, hands_on))) == unused


def test_every_package_is_listed_for_installation():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module.name for module in project() if module.path.endswith("__init__.py")}
    assert set(settings["packages"]) == folders
    without_init = {
        module.path
        for module in project()
        if not module.path.endswith("__init__.py") and module.name.rpartition(".")[0] not in folders
    }
    assert not without_init, "a folder of modules needs an __init__.py to be installed"


DISTRIBUTIONS = {
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
    "jaxlib": "jax",
}


def test_every_third_party_import_is_a_declared_dependency():
    import re
    import tomllib

    project_table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = {"matplotlib", "huggingface_hub", "tensorboardX", "IPython"}
    optional |= {"fastapi", "gradio", "starlette", "uvicorn"}  # of `jvdm serve` and `jvdm demo`
    declared = {re.split(r"[\[<>=]", text)[0] for text in project_table["dependencies"]}
    for module in project():
        for item in imports(module, names(project())):
            top = item.module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("jvdm", "pallas_kernels"):
                continue
            where = f"{module.path}:{item.line} imports {top}"
            assert DISTRIBUTIONS.get(top, top) in declared | optional, where
