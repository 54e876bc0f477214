"""The doctor finds each thing that can be wrong, says how to mend it, and never breaks itself."""

import pathlib
import re
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
    assert "jax 0.7.2 is loaded" in finding["found"] and "start Python again" in finding["fix"]


def test_a_plugin_of_another_version_is_named(only, versions):
    versions(jax_cuda13_plugin="0.9.0")
    finding = only("jax")
    assert finding["state"] == "failed"
    assert "jax-cuda13-plugin 0.9.0 does not fit jaxlib" in finding["found"]
    assert "jvdm[cuda13]" in finding["fix"]


HOSTS = {"COLAB_RELEASE_TAG": "Colab", "KAGGLE_KERNEL_RUN_TYPE": "Kaggle"}


@pytest.fixture
def host(monkeypatch):
    """Pretends to run on a notebook host; on a Kaggle whose image was made from Colab's."""

    def pretend(*variables):
        for name in HOSTS:
            monkeypatch.delenv(name, raising=False)
        for name in variables:
            monkeypatch.setenv(name, "1")

    pretend()
    return pretend


def test_the_image_of_colab_is_upgraded_by_one_line_and_a_restart(only, versions, host):
    host("COLAB_RELEASE_TAG")
    versions(jax="0.7.2", jaxlib="0.7.2", libtpu="0.0.21.1", numpy="2.1.3", flax="0.11.2")
    finding = only("packages")
    assert finding["state"] == "failed" and "jax 0.7.2 (needs 0.10)" in finding["found"]
    line = '%pip install -q --upgrade "jvdm[tpu]", then Runtime > Restart session'
    assert finding["fix"] == line
    assert diagnosis._system().found.endswith("Colab")


@pytest.mark.parametrize("name", ["jax", "numpy"])
def test_what_an_upgrade_replaced_under_a_running_process_asks_for_a_restart(
    only, versions, host, monkeypatch, name
):
    host("COLAB_RELEASE_TAG")
    old = {"jax": "0.7.2", "numpy": "2.1.3"}[name]
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(__version__=old))
    finding = only("jax")
    assert finding["state"] == "failed" and f"{name} {old} is loaded" in finding["found"]
    assert finding["fix"].startswith("Runtime > Restart session")


ASKED = [
    "jaxlib<=0.12.0,>=0.11.2",
    'jaxlib<=0.12.0,>=0.12.0; extra == "tpu"',
    'libtpu==0.0.47.*; extra == "tpu"',
    "numpy>=2.0",
]


@pytest.fixture
def chips(monkeypatch):
    """Pretends that there are so many chips of a TPU."""

    def pretend(count):
        found = [pathlib.Path(f"/dev/accel{i}") for i in range(count)]
        monkeypatch.setattr(diagnosis, "_tpu_chips", lambda: found)

    return pretend


@pytest.mark.parametrize(
    ("libtpu", "jaxlib", "message"),
    [
        ("0.0.17", "0.12.0", r"libtpu 0.0.17 .jax asks for ==0.0.47"),
        ("0.0.21.1", "0.12.0", r"libtpu 0.0.21.1 .jax asks for ==0.0.47"),
        ("0.0.47.1", "0.10.2", r"jaxlib 0.10.2 .jax asks for <=0.12.0,>=0.11.2"),
        ("0.0.47.1", "0.12.1", "jaxlib 0.12.1"),
        ("0.0.47.1", "0.12.0", None),
        (None, "0.11.2", None),
    ],
)
def test_the_parts_of_jax_must_fit_as_on_kaggle_they_do_not(
    only, versions, host, chips, monkeypatch, libtpu, jaxlib, message
):
    import jax
    import jaxlib as loaded

    host(*HOSTS)
    chips(8)
    monkeypatch.setattr(jax, "__version__", "0.12.0")
    monkeypatch.setattr(loaded, "__version__", jaxlib)
    monkeypatch.setattr(diagnosis, "_asked_by_jax", lambda: ASKED)
    versions(jax="0.12.0", jaxlib=jaxlib, libtpu=libtpu)
    finding = only("jax")
    assert finding["state"] == ("ok" if message is None else "failed"), finding
    if message is not None:
        assert re.search(message, finding["found"])
        line = '%pip install -q --upgrade "jax[tpu]==0.12.0", then Run > Restart & clear'
        assert finding["fix"].startswith(line)


@pytest.mark.parametrize("count", [0, 1])
def test_another_libtpu_stops_only_those_who_have_a_tpu(
    only, versions, host, chips, monkeypatch, count
):
    """JAX 0.10.2 with libtpu 0.0.21.1 computes on the CPU of a machine without a TPU (tried)."""
    import jax

    host("COLAB_RELEASE_TAG")
    chips(count)
    asked = [f"jaxlib=={jax.__version__}", 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(diagnosis, "_asked_by_jax", lambda: asked)
    versions(jaxlib=jax.__version__, libtpu="0.0.21.1")
    finding = only("jax")
    assert finding["state"] == ("failed" if count else "warning"), finding
    assert ("no TPU is seen" in finding["found"]) == (count == 0)
    line = (
        f'%pip install -q --upgrade "jax[tpu]=={jax.__version__}", then Runtime > Restart session'
    )
    assert finding["fix"] == line


@pytest.mark.parametrize(
    ("count", "plugins", "extra"),
    [
        (0, {"jax_cuda12_plugin": "0.7.2"}, "cuda12"),  # a T4 of Colab
        (0, {"jax_cuda12_plugin": None}, "tpu"),
        (1, {"jax_cuda12_plugin": "0.7.2"}, "tpu"),
    ],
)
def test_the_extra_is_that_of_the_accelerator(only, versions, host, chips, count, plugins, extra):
    host("COLAB_RELEASE_TAG")
    chips(count)
    versions(
        jax="0.7.2", jaxlib="0.7.2", libtpu="0.0.21.1", numpy="2.1.3", flax="0.11.2", **plugins
    )
    fix = only("packages")["fix"]
    assert fix == f'%pip install -q --upgrade "jvdm[{extra}]", then Runtime > Restart session'


def test_the_lines_of_this_jax_are_understood():
    lines = [line for line in diagnosis._asked_by_jax() if line.startswith(("jaxlib", "libtpu"))]
    assert lines and any("libtpu==" in line for line in lines)
    jaxlib = diagnosis._installed("jaxlib")
    assert not diagnosis._unfit({"jaxlib": jaxlib})
    assert len(diagnosis._unfit({"jaxlib": "0.4.30", "libtpu": "0.0.17"})) == 2


@pytest.mark.parametrize(
    ("variables", "found"),
    [((), None), (("COLAB_RELEASE_TAG",), "Colab"), (tuple(HOSTS), "Kaggle")],
)
def test_outside_of_notebooks_no_restart_is_asked_for(only, versions, host, variables, found):
    host(*variables)
    versions(flax="0.8.1")
    fix = only("packages")["fix"]
    assert ("Restart" in fix) == fix.startswith("%pip") == (found is not None)


def test_a_jupyter_of_ones_own_is_known(host, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert diagnosis._host() == "Jupyter"


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
