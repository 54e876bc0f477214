"""Programs have the options of their devices, and are parts of others all the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import compiling
from jvdm.compiling import Program


def _twice(x, times):
    return times * x


@pytest.fixture
def told(monkeypatch):
    """Makes options those of every device, and returns a program that says `static_argnames`."""

    def told(options):
        monkeypatch.setattr(compiling, "compiler_options", lambda: options)
        return Program(_twice, static_argnames="times")

    return told


def test_options_are_those_of_the_platform():
    assert compiling.compiler_options("cpu") is None
    assert compiling.compiler_options("gpu") == compiling.GPU_OPTIONS
    assert compiling.compiler_options("cpu", traced=True) is None
    traced = compiling.compiler_options("gpu", traced=True)
    assert traced == {**compiling.GPU_OPTIONS, "xla_gpu_enable_command_buffer": ""}


@pytest.mark.parametrize("traced", [False, True])
def test_this_jax_knows_the_options_of_gpus(traced):
    options = compiling.compiler_options("gpu", traced)
    assert jax.jit(_twice).lower(3.0, 2).compile(compiler_options=options)(3.0, 2) == 6


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_whole_is_drawn_by_kernels_of_a_gpu_and_the_same_elsewhere(whole):
    draw = jax.jit(lambda: jax.random.normal(jax.random.key(3), (8,)))
    plain = draw()
    with compiling.kernel_draws(whole):
        made, lowered = draw(), draw.trace().lower(lowering_platforms=("cuda",))
    np.testing.assert_array_equal(made, plain)
    assert ("cu_threefry2x32_ffi" in lowered.as_text()) == whole
    lowered = draw.trace().lower(lowering_platforms=("cuda",))
    assert "cu_threefry2x32_ffi" not in lowered.as_text()


def test_a_program_is_compiled_with_the_options(told):
    assert told({"xla_cpu_enable_fast_math": True})(3.0, times=2) == 6
    with pytest.raises(Exception, match="No such compile option"):
        told({"xla_unheard_of": True})(3.0, times=2)
    with pytest.raises(Exception, match="No such compile option"):
        told({"xla_unheard_of": True}).lower(3.0, times=2).compile()


@pytest.mark.parametrize(
    "use",
    [jax.jit, jax.vmap, jax.grad, functools.partial(functools.partial, jax.eval_shape)],
    ids=["jit", "vmap", "grad", "eval_shape"],
)
def test_part_of_another_it_has_those_of_the_whole(told, use):
    program = told({"xla_unheard_of": True})
    x = jnp.ones(2) if use is jax.vmap else 3.0
    assert use(lambda x: program(x, times=2))(x).shape == jnp.shape(x)


def test_without_options_it_is_compiled_once(told):
    traces = []

    def counted(x):
        traces.append(x)
        return x + 1

    told(None)
    program = Program(counted)
    assert program(1.0) == jax.jit(lambda x: program(x) + 0.0)(1.0) == 2
    assert len(traces) == 1 and program.__name__ == "counted"
