"""Attention of a GPU that is not here: traced, to be counted, and never run.

The libraries of a GPU cannot be traced where they are not installed. In their place stand calls of
which the shapes, what a backward pass keeps and the operations are known.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels.attention.kernel import attend
from pallas_kernels.block_mask import BlockMask

DENSE, SPARSE = "dot_product_attention_planned", "block_sparse_attention_planned"
"""Names of the calls."""

_planned = jax.make_user_context(None)  # a part of the key by which JAX remembers traces


@contextlib.contextmanager
def traced_for_gpu() -> Iterator[None]:
    """Makes attention that is traced inside what it is on a Hopper GPU: H100, H200."""
    with _planned("gpu"):
        yield


def is_planned() -> bool:
    """Whether a program is traced for a GPU that need not be here."""
    return _planned.value is not None


def backend() -> str:
    """Returns the platform that a program is traced for: the default one unless it is planned."""
    return _planned.value or jax.default_backend()


def capability() -> str:
    """Returns the compute capability of the GPU that a program is traced for, `9.0` for Hopper."""
    return "9.0" if is_planned() else getattr(jax.devices()[0], "compute_capability", "unknown")


def refusal_of_one_gpu() -> str:
    """Returns why nothing that runs on one GPU, which is here, can; empty if it can."""
    if backend() != "gpu":
        return f"the default device is {backend()}, not gpu"
    alone = not is_planned() and jax.sharding.get_abstract_mesh().empty
    return "" if alone else "it runs on the device that is here, alone"


def refusal_of_triton() -> str:
    """Returns why no kernel of Triton that is for one Hopper GPU runs here; empty if one does."""
    if reason := refusal_of_one_gpu():
        return reason
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return f"jax {jax.__version__} has no Triton"
    return "" if capability() == "9.0" else f"the capability {capability()} is not that of Hopper"


@dataclasses.dataclass(frozen=True)
class Planned:
    """Stands for a kernel, or for cuDNN."""

    name: str = SPARSE

    def refusal(self, q: Any, k: Any, mask: BlockMask) -> str:
        """Returns an empty text: it serves all calls."""
        return ""

    def about(self, mask: BlockMask) -> str:
        """Says that it cannot run."""
        return "it is planned, not run"

    def repeating(self) -> "Planned":
        """Returns itself."""
        return self

    def forward(
        self, q: Array, k: Array, v: Array, mask: BlockMask, scale: float
    ) -> tuple[Array, Array]:
        """Returns attended values and the log-sum-exp of the scores."""
        sums = jax.ShapeDtypeStruct((*q.shape[:1], q.shape[2], q.shape[1]), jnp.float32)
        return self._called((jax.ShapeDtypeStruct(q.shape, q.dtype), sums), 2, mask, q, k, v)

    def backward(
        self, q: Array, k: Array, v: Array, mask: BlockMask, scale: float, *given: Array
    ) -> tuple[Array, Array, Array]:
        """Returns the gradients."""
        results = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v))
        return self._called(results, 5, mask, q, k, v, *given)

    def _called(self, results: Any, products: int, mask: BlockMask, *arguments: Array) -> Any:
        keys = min(mask.kv_indices.shape[3] * mask.block_kv, mask.kv_len)
        call = jax.ffi.ffi_call(self.name, results, vmap_method="broadcast_all")
        return call(*arguments, operations=np.int64(2 * products * keys))


def planned_attention(q: Array, k: Array, v: Array, scale: float | None) -> Array:
    """Returns dense attention as it is traced for cuDNN."""
    kernel: Any = Planned(DENSE)
    pairs = BlockMask.full(q.shape[1], k.shape[1])
    both: Any = attend(kernel, q, k, v, pairs, q.shape[3] ** -0.5 if scale is None else scale)
    return both[0]


def operations(target: str, attributes: Any) -> int:
    """Returns the operations of a call for each number of its queries; 0 of another call."""
    return int(dict(attributes)["operations"]) if target in (DENSE, SPARSE) else 0
