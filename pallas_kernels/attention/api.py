"""Attention: one call, several implementations, chosen by what can serve it."""

import functools
import math
import os
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention import planned
from pallas_kernels.attention.kernel import Kernel, KernelUnavailable, attend
from pallas_kernels.attention.planned import backend, capability, is_planned
from pallas_kernels.attention.reference import masked_attention
from pallas_kernels.attention.skipping import skipped_blocks
from pallas_kernels.attention.xla import gather_attention, looped_mass
from pallas_kernels.block_mask import BlockMask

Implementation = Literal["xla", "cudnn"]
AutomaticImplementation = Literal["mosaic_gpu", "pallas_tpu"]
KernelImplementation = AutomaticImplementation | Literal["cudnn"]
MassImplementation = Literal["xla", "mosaic_gpu"]
SparseImplementation = Literal["reference", "xla"] | KernelImplementation

_BACKENDS: dict[KernelImplementation, str] = {
    "mosaic_gpu": "gpu",
    "pallas_tpu": "tpu",
    "cudnn": "gpu",
}
KERNELS = tuple(_BACKENDS)

LONG, LONG_IN_BOTH = {64: 6_000, 128: 4_096}, {64: 32_000, 128: 4_096}
"""Queries and keys, by head size, from which full lists are faster than cuDNN, and from which they
are in both passes: between, what is differentiated is dense attention."""
LONG_ON_TPU = 4_096
"""Tokens from which full lists take the place of dense attention on TPUs, where XLA would keep the
scores of all pairs: 0.8 GB for 12 heads, in a backward pass several times."""
MOST_PAIRS = 2**30
"""Pairs of all heads that `reference` computes with unasked: 7 bytes of memory for each."""


def dense_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    *,
    mask: Bool[Array, "#B #N Q K"] | None = None,
    kv_lengths: Int[Array, " B"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B Q N D"]:
    """Computes `softmax(scale q k^T) v` for every head.

    Args:
        q: Queries.
        k: Keys; `K` may differ from `Q`, and `H` divides `N`.
        v: Values.
        mask: True where a query may attend to a key.
        kv_lengths: Number of keys, from the first, that each batch row attends
            to; the rest is padding. At least 1.
        scale: Factor of the products; `1 / sqrt(D)` if None.
        implementation: `xla` runs anywhere; `cudnn` needs an NVIDIA GPU and
            16-bit inputs. None chooses `cudnn` where `refusal` finds no
            reason against it.

    Returns:
        Attended values in the dtype of `q`; softmax is taken in float32.

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    reason = refusal(q)
    if implementation == "cudnn" and reason:
        raise KernelUnavailable(f"cudnn: {reason}; use implementation='xla'")
    chosen = implementation or ("xla" if reason else "cudnn")
    if chosen == "cudnn" and is_planned():
        return planned.planned_attention(q, k, v, scale)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, key_value_seq_lengths=kv_lengths, implementation=chosen
    )


class Choice(NamedTuple):
    """Which implementation serves a call, and why."""

    implementation: SparseImplementation
    reason: str


def block_sparse_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    mask: BlockMask | None,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: SparseImplementation | None = None,
    deterministic: bool = False,
) -> Any:
    """Computes attention among the pairs that `mask` allows, and its gradients.

    Args:
        q: Queries.
        k: Keys; `H` divides `N`, and consecutive heads of the queries share a head.
        v: Values.
        mask: The blocks that are attended to, which have no gradient; None is all of them: full
            lists for a kernel that is faster than `dense_attention` at these sizes
            (`LONG`), else that, whose gradients are taken up to `LONG_IN_BOTH`.
        scale: Factor of the products; `1 / sqrt(D)` if None.
        return_lse: Whether the log-sum-exp of the scores is returned too.
        implementation: As `explain` describes; None lets it choose.
        deterministic: Whether gradients must be the same bits in every call. `mosaic_gpu` then
            takes more time for those of queries, and `cudnn` refuses; `pallas_tpu` always has
            such gradients, and what XLA computes with `--xla_gpu_deterministic_ops=true`.

    Returns:
        Attended values in the dtype of `q`, zeros for a query that attends to nothing; with
        `return_lse` a pair of these and f32[B, N, Q], natural logarithms, -inf for such a query.

    Raises:
        ValueError: If the mask is made for other sizes.
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    if mask is None and not (return_lse or implementation):
        if not _is_long(q, k, deterministic):
            return dense_attention(q, k, v, scale=scale)
        if not _is_long(q, k, deterministic, LONG_IN_BOTH):
            return _all_pairs(q, k, v, scale)
    rows = 192 if backend() == "gpu" and q.shape[3] <= 64 else 128  # see `ForwardSizes`
    mask = BlockMask.full(q.shape[1], k.shape[1], rows) if mask is None else mask
    chosen = explain(q, k, mask, implementation).implementation
    factor = positive(q, scale, chosen)
    if chosen in KERNELS:
        kernel: Any = planned.Planned() if is_planned() else _kernel(chosen)
        kernel = kernel.repeating() if deterministic else kernel
        both: Any = attend(kernel, q, k, v, mask, factor)
    elif chosen == "reference":
        skipped = None if mask.skip_log2 is None else skipped_blocks(q, k, mask, factor)
        both = masked_attention(q, k, v, mask, factor, skipped)
    else:
        both = gather_attention(q, k, v, mask, factor)
    return both if return_lse else both[0]


def block_mass(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    lse: Float[Array, "B N Q"],
    block_q: int = 128,
    block_kv: int = 128,
    scale: float | None = None,
    kv_lengths: Int[Array, "#B k"] | None = None,
    implementation: MassImplementation | None = None,
) -> Float[Array, "B N q k"]:
    """Returns how much attention each block of queries pays to each block of keys.

    Linear in the length of the queries in memory, quadratic in time; values are not read.

    Args:
        q: Queries.
        k: Keys; `H` divides `N`.
        lse: Log-sum-exp of their scores, as attention returns it.
        block_q: Queries of a block.
        block_kv: Keys of a block.
        scale: Factor of the products; `1 / sqrt(D)` if None.
        kv_lengths: Keys of a block that count, from its first, as in `BlockMask`; None is all.
        implementation: `mosaic_gpu` is for H100 and H200 and blocks that are multiples of 16;
            `xla` runs anywhere. None chooses the first where it can serve the call.

    Returns:
        Mean over the queries of a block of the weights of the keys of a block: sums to 1
        over all blocks of keys if `lse` is that of dense attention.

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    factor = q.shape[3] ** -0.5 if scale is None else scale
    reason = _device_refusal("mosaic_gpu")
    kernel: Any = None if reason else _kernel("mosaic_gpu")
    reason = reason or kernel.refusal_of_mass(q, block_q, block_kv)
    if implementation == "mosaic_gpu" and reason:
        raise KernelUnavailable(f"mosaic_gpu: {reason}; use implementation='xla'")
    if implementation == "xla" or reason or is_planned():
        sums = looped_mass(q, k, lse, block_q, block_kv, factor, kv_lengths)
    else:
        sums = kernel.mass(q, k, lse, block_q, block_kv, factor, kv_lengths)
    sizes = jnp.minimum(block_q, q.shape[1] - block_q * jnp.arange(sums.shape[2]))
    return sums / sizes.reshape(1, 1, -1, 1)


def explain(
    q: Any, k: Any, mask: BlockMask, implementation: SparseImplementation | None = None
) -> Choice:
    """Says which implementation of block-sparse attention serves a call, and why.

    Of `q` `[B, Q, N, D]` and `k` `[B, K, H, D]` shapes and dtypes suffice.
    `mosaic_gpu` is for H100 and H200, `pallas_tpu` for TPUs; each is chosen there. `cudnn` is for
    B100 and B200 with NVIDIA's cuDNN frontend, and never chosen unasked. `reference` is attention
    under the mask of all pairs. `xla` runs anywhere and grows with the width of the lists; it is
    chosen where they hold at most half of the key blocks, or pairs are more than `MOST_PAIRS`.

    Raises:
        ValueError: If the mask is made for other sizes.
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    mask.check_sizes(q, k)
    if implementation is not None:
        reason = _kernel_refusal(implementation, q, k, mask) if implementation in KERNELS else ""
        if reason:
            raise KernelUnavailable(f"{implementation}: {reason}; use implementation='xla'")
        return _choice(implementation, "it was asked for", mask)
    reasons = {}
    for name in get_args(AutomaticImplementation):
        reasons[name] = _kernel_refusal(name, q, k, mask)
        if not reasons[name]:
            return _choice(name, "it is the kernel for this device", mask)
    width, blocks = mask.kv_indices.shape[3], mask.grid[1]
    why = "; ".join(f"no {name}: {reason}" for name, reason in reasons.items())
    pairs = math.prod(q.shape[:3]) * k.shape[1]
    why = f"the lists of {pairs:.2g} pairs have room for {width} of {blocks} key blocks ({why})"
    return Choice("xla" if 2 * width <= blocks or pairs > MOST_PAIRS else "reference", why)


def serving(
    q: Any, k: Any, mask: BlockMask, implementation: SparseImplementation | None
) -> Kernel | None:
    """Returns the kernel that serves a call (`explain`); None if XLA does, or memory is planned."""
    chosen = explain(q, k, mask, implementation).implementation
    return None if is_planned() or chosen not in KERNELS else _kernel(chosen)


def positive(q: Array, scale: float | None, chosen: SparseImplementation) -> float:
    """Returns the factor of the products, which a kernel wants above 0."""
    factor = q.shape[3] ** -0.5 if scale is None else scale
    if chosen in KERNELS and factor <= 0:
        raise ValueError(f"a scale of {factor}; {chosen} needs one above 0")
    return factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _all_pairs(q: Array, k: Array, v: Array, scale: float | None) -> Array:
    """Computes full lists by the kernel; its gradients are those of dense attention."""
    return block_sparse_attention(q, k, v, None, scale=scale, implementation="mosaic_gpu")


_all_pairs.defvjp(
    lambda q, k, v, scale: jax.vjp(functools.partial(dense_attention, scale=scale), q, k, v),
    lambda scale, pull, d_out: pull(d_out),
)


def _is_long(q: Array, k: Array, deterministic: bool, long: dict[int, int] = LONG) -> bool:
    """Returns whether full lists are better than dense attention, on the one device there is.

    Several devices share dense attention as XLA divides it, which a kernel it cannot.
    """
    size, length = 64 if q.shape[3] <= 64 else 128, min(q.shape[1], k.shape[1])
    if jax.device_count() > 1:
        return False
    if not _device_refusal("pallas_tpu") and length >= LONG_ON_TPU:
        return not _kernel("pallas_tpu").refusal(q, k, BlockMask.full(q.shape[1], k.shape[1]))
    if length < long[size] or _device_refusal("mosaic_gpu"):
        return False
    if deterministic or "xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", ""):
        return False
    kernel: Any = _kernel("mosaic_gpu")
    return not kernel.refusal_of_inputs(q)


def _choice(name: SparseImplementation, reason: str, mask: BlockMask) -> Choice:
    """Returns a choice, with what its kernel says of itself."""
    about = _kernel(name).about(mask) if name in KERNELS and not is_planned() else ""
    return Choice(name, f"{reason}; {about}" if about else reason)


@functools.cache
def _kernel(name: KernelImplementation) -> Kernel:
    """Returns a kernel, whose module is imported when it is first asked for."""
    if name == "mosaic_gpu":
        from pallas_kernels.attention.mosaic_gpu import MosaicGPU

        return MosaicGPU()
    if name == "pallas_tpu":
        from pallas_kernels.attention.pallas_tpu import PallasTPU

        return PallasTPU()
    if name == "cudnn":
        from pallas_kernels.attention.cudnn import Cudnn

        return Cudnn()
    raise ValueError(f"no kernel is called {name}")


def _kernel_refusal(name: KernelImplementation, q: Any, k: Any, mask: BlockMask) -> str:
    """Returns why a kernel cannot serve a call here; empty if it can."""
    return _device_refusal(name) or _kernel(name).refusal(q, k, mask)


def _device_refusal(name: KernelImplementation) -> str:
    there, needed = backend(), _BACKENDS[name]
    return "" if there == needed else f"the default device is {there}, not {needed}"


def refusal(q: Float[Array, "B Q N D"]) -> str:
    """Returns why cuDNN cannot serve queries like `q` here; empty if it can."""
    if backend() != "gpu":
        return f"the default device is {backend()}, not an NVIDIA GPU"
    if q.dtype.itemsize != 2:
        return f"the inputs are {q.dtype}, not 16-bit"
    largest = 256 if capability() == "9.0" else 128
    if q.shape[-1] % 8 or q.shape[-1] > largest:
        return f"the head size {q.shape[-1]} is not a multiple of 8 up to {largest}"
    return ""
