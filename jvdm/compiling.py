"""How programs are compiled: `jax.jit`, and what XLA does better on GPUs when it is told to."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

GPU_OPTIONS: dict[str, str | bool] = {
    # Products by cuBLAS, which adds biases and takes GELU as it writes: on an H200 a forward pass
    # of LTX-Video takes 4 % less. XLA's own kernels (Triton) are no faster at these shapes, and
    # choosing among them took a third of a cold start of training.
    "xla_gpu_enable_triton_gemm": False,
    # Convolutions in three axes find channels last, as they lie; XLA would transpose the video
    # there and back. Decoding Wan's latents takes an eighth less on an H200.
    "xla_gpu_force_conv_nhwc": True,
    # Products of one input are not made one if they move more megabytes: their weights would be
    # joined in every call, for an input that is read once. LTX-Video takes 1.5 % less on an H200.
    "xla_gpu_dot_merger_threshold_mb": "16",
    # What a loop over layers hands out is not cleared before: every entry is written. A chunk of a
    # stream of Wan takes .8 % less on an H200.
    "xla_gpu_enable_dus_accumulator_zero_init_elimination": True,
}
"""Options of XLA for programs on GPUs."""


def compiler_options(
    platform: str | None = None, traced: bool = False
) -> dict[str, str | bool] | None:
    """Returns the options of programs on `platform`, by default JAX's own; None if it has none.

    Operations of a `traced` program start one by one, so that a profiler names them: those of a
    CUDA graph are one event.
    """
    if (platform or jax.default_backend()) != "gpu":
        return None
    return {**GPU_OPTIONS, **({"xla_gpu_enable_command_buffer": ""} if traced else {})}


def kernel_draws(whole: bool = True) -> contextlib.AbstractContextManager[None]:
    """Makes programs that are traced inside draw random numbers by a kernel of the GPU.

    The numbers are the same. Otherwise XLA compiles the rounds of Threefry for every draw and every
    key: for the parameters of the shipped model 70,000 operations, which took a minute.

    Args:
        whole: Whether all that is drawn is on every device. If not, nothing changes: a kernel is
            not split over devices.
    """
    from jax._src import config  # it has no public name that holds for a thread

    return config.threefry_gpu_kernel_lowering(whole)


class Program:
    """`jax.jit(function, **settings)` with the `compiler_options` of the devices.

    As part of another program it is a plain `jax.jit`: those of the outermost one count.
    """

    def __init__(self, function: Callable[..., Any], **settings: Any):
        functools.update_wrapper(self, function)
        self._settings = settings
        self._inner = jax.jit(function, **settings)

    @functools.cached_property
    def _outer(self) -> Any:  # on the first call, as asking for the devices sets JAX up
        options = compiler_options()
        if options is None:
            return self._inner
        return jax.jit(self.__wrapped__, compiler_options=options, **self._settings)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the compiled function."""
        if self._outer is self._inner or _is_traced((args, kwargs)):
            return self._inner(*args, **kwargs)
        return self._outer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Returns what `jax.jit` has: `lower`, `trace`, `eval_shape`, ..."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._outer, name)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
