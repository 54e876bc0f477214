"""Imports go downwards, pallas_kernels stands alone, and no module is left over."""

import ast
import sys

import pytest

from tests.architecture.source import ROOT, Module, imports, names, planted, project

LAYERS = (
    ("arrays", "errors"),  # the vocabulary of all others
    ("cache", "files", "keys", "stages", "values"),
    ("record",),
    ("fidelity", "parallel", "samplers", "video", "weights", "world"),
    ("data", "outputs"),
    ("attention",),
    ("models", "text", "vae"),
    ("pipeline",),
    ("evaluation", "training"),
    ("experiment", "options"),
    ("decode", "diagnosis", "evaluate", "generate", "inspection", "train"),
    ("", "__main__", "cli", "configs", "overrides"),
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}

KERNEL_IMPORTS = {"jax", "numpy", "jaxtyping", "pallas_kernels"} | set(sys.stdlib_module_names)

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


def referenced(module: Module, known: frozenset[str]) -> set[str]:
    """Returns the modules in `known` that `module` imports or, lazily, names in a string."""
    targets = {item.module for item in imports(module, known)}
    targets |= {
        node.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    parents = {name.rsplit(".", count)[0] for name in targets & known for count in (1, 2)}
    return (targets | parents) & known


def unreachable(modules: tuple[Module, ...]) -> list[str]:
    known = names(modules)
    by_name = {module.name: module for module in modules}
    programs = {module.name for module in modules if 'if __name__ == "__main__"' in module.text}
    waiting = [name for name in known if name.startswith("jvdm.configs.") or name in programs]
    waiting += [name for name in ROOTS if name in known]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += referenced(by_name[name], known)
    return sorted(known - reached)


def test_every_module_is_used():
    assert not unreachable(project()), "imported by no program, config or public name"


def test_the_use_check_can_fail():
    dead = (
        planted("from jvdm.dead_two import x", "jvdm.dead_one"),
        planted("from jvdm.dead_one import y", "jvdm.dead_two"),
    )
    assert {"jvdm.dead_one", "jvdm.dead_two"} <= set(unreachable(project() + dead))


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
    optional = {"matplotlib", "gradio", "huggingface_hub", "tensorboardX", "IPython"}
    declared = {re.split(r"[\[<>=]", text)[0] for text in project_table["dependencies"]}
    for module in project():
        for item in imports(module, names(project())):
            top = item.module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("jvdm", "pallas_kernels"):
                continue
            where = f"{module.path}:{item.line} imports {top}"
            assert DISTRIBUTIONS.get(top, top) in declared | optional, where
