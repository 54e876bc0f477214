"""The doctor finds each thing that can be wrong, says how to mend it, and never breaks itself."""

import sys
import types

import pytest

from jvdm import cli, diagnosis
from jvdm.errors import WeightsError

GOOD = diagnosis.Finding("ok", "fine")


@pytest.fixture
def only(monkeypatch):
    """Leaves one check in place, replaced or not."""

    def keep(name, check=None):
        monkeypatch.setattr(diagnosis, "CHECKS", {name: check or diagnosis.CHECKS[name]})
        return diagnosis.run(diagnosis.DoctorOptions())["checks"][name]

    return keep


@pytest.fixture
def versions(monkeypatch):
    """Pretends that packages have other versions; None is not installed."""

    def pretend(**changed):
        changed = {name.replace("_", "-"): version for name, version in changed.items()}
        real = diagnosis._installed
        monkeypatch.setattr(
            diagnosis, "_installed", lambda name: changed[name] if name in changed else real(name)
        )

    return pretend


@pytest.mark.parametrize("name", [name for name in diagnosis.CHECKS if name != "weights"])
def test_this_machine_is_sound(only, name):
    assert only(name)["state"] != "failed"


def test_the_shipped_weights_are_found_or_missed(only):
    from jvdm.weights.folder import EMBEDDED, MANIFEST

    finding = only("weights")
    there = (EMBEDDED / diagnosis.SHIPPED / MANIFEST).is_file()
    assert finding["state"] == ("ok" if there else "failed")


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
def test_only_failures_stop_generation(monkeypatch, capsys, state, code):
    finding = diagnosis.Finding(state, "found so", "mend it so")
    monkeypatch.setattr(diagnosis, "CHECKS", {"a": lambda: GOOD, "b": lambda: finding})
    assert cli.main(["doctor"]) == code
    out = capsys.readouterr().out
    assert "found so" in out and "-> mend it so" in out
    assert ("generation can run" in out) == (code == 0)


def test_a_check_that_breaks_is_a_finding(only):
    def broken():
        raise OSError("libfoo.so: cannot open\nmany more lines")

    finding = only("video", broken)
    assert finding["state"] == "failed"
    assert finding["found"] == "OSError: libfoo.so: cannot open"


def test_errors_of_jvdm_bring_their_fix(only):
    def broken():
        raise WeightsError("no weights", "they were never fetched", "run git lfs pull")

    finding = only("weights", broken)
    assert finding["found"] == "no weights; they were never fetched"
    assert finding["fix"] == "run git lfs pull"


def test_another_jax_in_memory_than_on_disk_asks_for_a_restart(only, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(__version__="0.7.2"))
    finding = only("jax")
    assert finding["state"] == "failed"
    assert "jax 0.7.2 is loaded" in finding["found"] and "restart" in finding["fix"]


def test_a_plugin_of_another_version_is_named(only, versions):
    versions(jax_cuda13_plugin="0.9.0")
    finding = only("jax")
    assert finding["state"] == "failed"
    assert "jax-cuda13-plugin 0.9.0 does not fit jaxlib" in finding["found"]
    assert "jvdm[cuda13]" in finding["fix"]


def test_old_and_missing_packages_are_named(only, versions):
    versions(flax="0.8.1", av=None)
    finding = only("packages")
    assert finding["state"] == "failed"
    assert "flax 0.8.1 (needs " in finding["found"] and "missing: av" in finding["found"]


def test_a_package_that_generation_does_not_need_is_a_warning(only, versions):
    versions(grain=None)
    assert only("packages")["state"] == "warning"


def test_an_idle_gpu_is_pointed_out(only, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(diagnosis, "_idle_accelerator", lambda: ("an NVIDIA GPU", "jvdm[cuda13]"))
    finding = only("devices")
    assert finding["state"] == "warning"
    assert "though there is an NVIDIA GPU" in finding["found"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert only("devices")["state"] == "ok"


def test_a_cache_that_cannot_be_written_is_a_warning(only, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(blocked / "xla"))
    finding = only("cache")
    assert finding["state"] == "warning"
    assert "JVDM_HOME" in finding["fix"]


def test_little_memory_is_a_warning(only, monkeypatch):
    monkeypatch.setattr(diagnosis, "free_memory", lambda: 10**9)
    assert only("memory")["state"] == "warning"


def test_notebooks_print_the_table(capsys):
    assert diagnosis.doctor() is None
    assert "generation can" in capsys.readouterr().out


def test_it_runs_where_jax_cannot_be_imported(run_python):
    code = """
import sys
sys.modules["jax"] = None
from jvdm import cli
sys.exit(cli.main(["doctor"]))
"""
    process = run_python("-c", code)
    assert process.returncode == 1, process.stderr
    assert "failed   devices" in process.stdout
