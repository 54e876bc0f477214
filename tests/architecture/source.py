"""The project's source files as syntax trees, with their imports resolved to module names."""

import ast
import dataclasses
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"jvdm": "jvdm", "pallas_kernels": "pallas_kernels", "configs": "jvdm.configs"}


@dataclasses.dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: str
    text: str = dataclasses.field(repr=False)

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module and the name taken from it (`""` for the module itself)."""

    module: str
    name: str
    line: int


@functools.cache
def project(*folders: str) -> tuple[Module, ...]:
    """Returns the modules below `folders` (default: jvdm, pallas_kernels, configs)."""
    found = []
    for folder in folders or tuple(FOLDERS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path == ROOT / "jvdm/configs/__init__.py":  # the stand-in for configs/
                continue
            relative = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = [FOLDERS.get(folder, folder), *relative]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name, str(path.relative_to(ROOT)), path.read_text()))
    return tuple(found)


def imports(module: Module, known: frozenset[str]) -> list[Import]:
    """Returns all imports of `module`, those inside functions and `TYPE_CHECKING` too.

    `from package import name` counts as an import of `package.name` where that is a
    module in `known`.
    """
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                target = Import(inner, "", node.lineno) if inner in known else None
                found.append(target or Import(base, alias.name, node.lineno))
    return found


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = module.path.endswith("__init__.py")
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def names(modules: tuple[Module, ...]) -> frozenset[str]:
    """Returns the dotted names of `modules`."""
    return frozenset(module.name for module in modules)


def planted(text: str, name: str = "jvdm.planted", path: str = "jvdm/planted.py") -> Module:
    """Returns a module that exists only in a test, to prove that a check can fail."""
    return Module(name, path, text)
