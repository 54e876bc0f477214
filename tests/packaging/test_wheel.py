"""The wheel works where there is no checkout: command, recipes, weights."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

pytestmark = pytest.mark.slow  # builds a wheel and makes a virtual environment

EMBEDDED = ROOT / "jvdm" / "weights" / "embedded"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Builds the wheel from a copy, with the setuptools that is installed: no network."""
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools leaves build/ beside the sources, and an old one would leak into the wheel.
    copy = folder / "source"
    for name in ("jvdm", "pallas_kernels", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*command, "--wheel-dir", str(folder), str(copy)], folder)
    [built] = folder.glob("jvdm-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """Makes a virtual environment that holds the wheel and sees our libraries, but not jvdm."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    libraries = folder / "libraries"  # all of ours except jvdm, which is installed editable
    libraries.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "jvdm" not in entry.name.lower():
            (libraries / entry.name).symlink_to(entry)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    run([*install, "--no-deps", "--no-index", str(wheel)], folder)
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return folder / "venv" / "bin"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Runs a command away from the checkout; it must succeed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"
    return process


def test_it_holds_every_module_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    expected = {
        str(path.relative_to(ROOT))
        for folder in ("jvdm", "pallas_kernels")
        for path in (ROOT / folder).rglob("*.py")
    }
    configs = {f"jvdm/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    assert held == expected | configs


def test_it_tells_type_checkers_that_it_has_types(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"jvdm/py.typed", "pallas_kernels/py.typed"} <= held


def test_it_holds_the_embedded_weights(wheel):
    held = {
        item.filename: item.file_size
        for item in zipfile.ZipFile(wheel).infolist()
        if item.filename.startswith("jvdm/weights/embedded/")
    }
    expected = {
        str(path.relative_to(ROOT)): path.stat().st_size
        for path in EMBEDDED.rglob("*")
        if path.is_file()
    }
    assert held == expected


def test_the_command_runs_away_from_the_checkout(environment, tmp_path):
    assert "usage: jvdm" in run([str(environment / "jvdm"), "--help"], tmp_path).stdout
    version = run([str(environment / "python"), "-m", "jvdm", "--version"], tmp_path).stdout
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert version.strip() == settings["project"]["version"]


def test_the_doctor_examines_the_installed_package(environment, tmp_path):
    command = [str(environment / "jvdm"), "doctor", "--json"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    result = json.loads(process.stdout)
    assert process.returncode == (0 if result["ok"] else 1), process.stderr
    failed = [name for name, check in result["checks"].items() if check["state"] == "failed"]
    assert failed == ([] if (EMBEDDED / "tiny_t2v").is_dir() else ["weights"])


def test_recipes_and_public_names_are_importable(environment, tmp_path):
    code = """
import pathlib, jvdm, jvdm.configs.nano
from jvdm.configs import nano
assert nano.config().name == "nano"
assert callable(jvdm.load) and callable(jvdm.doctor) and jvdm.Pipeline and jvdm.Video
print(pathlib.Path(nano.__file__).parent, pathlib.Path(jvdm.__file__).parent)
"""
    configs, package = run([str(environment / "python"), "-c", code], tmp_path).stdout.split()
    assert Path(configs) == Path(package) / "configs"
    assert not Path(package).is_relative_to(ROOT)


def test_a_shipped_recipe_is_found_by_its_name(environment, tmp_path):
    command = [str(environment / "jvdm"), "train", "nano", "--help"]
    assert "--optimizer.learning-rate" in run(command, tmp_path).stdout
