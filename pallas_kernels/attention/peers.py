"""Attention of other libraries, which the bench times in the same run where they are installed."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_kernels.block_mask import BlockMask

Calls = tuple[tuple[Callable[[], Any], Callable[[], Any]], Callable[[Any], Any]]


class Peer(NamedTuple):
    """Another library.

    Attributes:
        module: What is imported.
        sparse: Whether it takes lists of blocks; else it is timed as dense attention.
        calls: Makes the forward pass and both passes of `(q, k, v, d_out)` under a mask, and
            what waits for their results.
    """

    module: str
    sparse: bool
    calls: Callable[[tuple[Any, ...], BlockMask], Calls]


def missing(name: str) -> str:
    """Returns why a peer is not measured here; empty if it is."""
    module = PEERS[name].module
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if jax.default_backend() != "gpu":
        return f"the device is {jax.default_backend()}, not gpu"
    if name == "flex_attention" and not importlib.import_module("torch").cuda.is_available():
        return "this torch has no CUDA"
    return ""


def flex_lists(mask: BlockMask, device: str) -> Any:
    """Returns the lists as the block mask of PyTorch, all blocks of which count in full."""
    torch = importlib.import_module("torch")
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    listed = np.asarray(mask.to_dense())
    order = np.argsort(~listed, -1, kind="stable").astype(np.int32)  # of full width, as it wants
    counts, order = (
        torch.as_tensor(x, device=device) for x in (listed.sum(-1, dtype=np.int32), order)
    )
    return flex.BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(order),
        counts,
        order,
        BLOCK_SIZE=(mask.block_q, mask.block_kv),
        seq_lengths=(mask.q_len, mask.kv_len),
    )


def _flex(inputs: tuple[Any, ...], mask: BlockMask) -> Calls:
    """FlexAttention of PyTorch, compiled: nothing else reads the lists."""
    torch = importlib.import_module("torch")
    flex = importlib.import_module("torch.nn.attention.flex_attention")

    def moved(x: Any) -> Any:
        wide = torch.as_tensor(np.array(x, np.float32), device="cuda").transpose(1, 2)
        return wide.to(getattr(torch, str(x.dtype))).contiguous()

    q, k, v, d_out = (moved(x) for x in inputs)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    attend = functools.partial(
        torch.compile(flex.flex_attention), block_mask=flex_lists(mask, "cuda")
    )

    def forward() -> Any:
        with torch.no_grad():
            return attend(q, k, v)

    def both() -> Any:
        return torch.autograd.grad(attend(*leaves), leaves, d_out)

    return (forward, both), lambda _: torch.cuda.synchronize()


def _tokamax(inputs: tuple[Any, ...], mask: BlockMask) -> Calls:
    """Dense attention of tokamax; it chooses the implementation."""
    attend = importlib.import_module("tokamax").dot_product_attention
    q, k, v, d_out = inputs
    forward = jax.jit(attend)
    both = jax.jit(lambda q, k, v, d_out: jax.vjp(attend, q, k, v)[1](d_out))
    calls = functools.partial(forward, q, k, v), functools.partial(both, q, k, v, d_out)
    return calls, jax.block_until_ready


PEERS = {
    "flex_attention": Peer("torch", True, _flex),
    "tokamax": Peer("tokamax", False, _tokamax),
}
