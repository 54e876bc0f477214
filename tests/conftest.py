"""Strictness of the whole test run: checked annotations, explicit broadcasting, four CPU devices.

`JAX_PLATFORMS=cuda pytest ...` runs the same tests on an accelerator. Where beartype is
missing the annotations are not checked. Compiled programs are kept in `.jax_cache/`.
"""

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Environment variables rather than jax.config: processes started by tests inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Programs of the tests run once or twice on tiny shapes: compiling them is most of the work,
    # and without LLVM's expensive passes and XLA's fusion emitters it is a third to a half less.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # another one may not know them
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ.setdefault("XLA_FLAGS", flags)
elif os.environ["JAX_PLATFORMS"] == "cuda":
    # Products of float32 would have the ten bits of TF32 there; bounds are those of float32.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

# A job in the background starts with Ctrl-C ignored, and what it starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

if importlib.util.find_spec("beartype") is not None:
    import jaxtyping

    import tests.checks  # noqa: F401

    jaxtyping.install_import_hook(["jvdm", "pallas_kernels"], "tests.checks.checked")

import jax  # noqa: E402  (after the environment is set)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)

if jax.__version__.startswith("0.10."):
    # To load the dialects of MLIR takes longer than to lower a small program. Newer versions do it
    # once for ten programs of a thread, since what a context holds is kept as long as it is.
    from jax._src.interpreters import mlir

    make_context, kept = mlir.make_ir_context, threading.local()

    def context_of_thread():
        if not getattr(kept, "uses", 0):
            kept.context, kept.uses = make_context(), 20
        kept.uses -= 1
        return kept.context

    mlir.make_ir_context = context_of_thread

# Tracing makes many objects that live long: to look for garbage at every 700th of them, as Python
# does, is a seventh of a run.
gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Modules with slow tests first: one of them at the end would leave a core without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What is imported and collected stays: nothing looks at it again."""
    gc.freeze()


if importlib.util.find_spec("hypothesis") is not None:
    import hypothesis

    # The same examples in every run, and no deadline: the first example compiles.
    hypothesis.settings.register_profile(
        "jvdm", deadline=None, derandomize=True, database=None, max_examples=30
    )
    hypothesis.settings.load_profile("jvdm")


# Every compiled program is mapped into memory. The whole suite in one process would come close
# to Linux's limit of 65530 mappings, beyond which the compiler crashes, and hold several GB.
MANY_MAPPINGS = 10_000
MUCH_MEMORY = 2.5e9
MAPPINGS, PAGES = Path("/proc/self/maps"), Path("/proc/self/statm")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops compiled programs after a module when there are many; `.jax_cache/` keeps them."""
    yield
    if not MAPPINGS.exists():
        return
    resident = int(PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident > MUCH_MEMORY or MAPPINGS.read_bytes().count(b"\n") > MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # glibc keeps what was freed


# These compare with what NumPy, JAX or another program says to the last bits, or run long.
OPTIMISED = {"test_guidance", "test_sampler", "test_solvers_edm", "test_calibration", "test_floors"}


@pytest.fixture(scope="module", autouse=True)
def compiled_as_users_compile(request):
    """Compiles programs of the modules `OPTIMISED` with all passes."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, before and request.path.stem not in OPTIMISED)
    yield
    jax.config.update(name, before)


@pytest.fixture
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture
def key():
    """A fixed random key."""
    return jax.random.key(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded NumPy generator for host-side data."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def run_python():
    """Runs `python ARGUMENTS` in a fresh process of one CPU device, outside the annotation hook.

    The call returns the finished process (`returncode`, `stdout`, `stderr`); a failure is
    left to the test unless `check=True`.
    """

    def run(*arguments: str, timeout: float = 300, check: bool = False, **environment: str):
        process = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and process.returncode != 0:
            pytest.fail(f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}")
        return process

    return run
