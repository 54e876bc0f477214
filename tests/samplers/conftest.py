"""Programs of this folder run once or twice on tiny shapes: on a CPU they are compiled quickly."""

import jax
import pytest

# Compare with what NumPy, JAX or another program says, to the last bits of float32.
EXACT = {"test_guidance", "test_sampler", "test_solvers_edm"}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(request):
    """Leaves out LLVM's expensive passes, which take most of the time of these tests."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    exact = request.module.__name__.rpartition(".")[2] in EXACT
    jax.config.update(name, before or (jax.default_backend() == "cpu" and not exact))
    yield
    jax.config.update(name, before)
