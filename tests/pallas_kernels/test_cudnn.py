"""NVIDIA's kernels for Blackwell behind the same contract: what they are given, what comes out.

A module with the signatures of `cudnn.block_sparse_attention.jax_api` (nvidia-cudnn-frontend 1.32)
takes its place: it refuses what that refuses, and computes what that documents.
"""

import dataclasses
import functools
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, KernelUnavailable, block_sparse_attention, explain
from pallas_kernels.attention.cudnn import MODULE, Cudnn
from pallas_kernels.attention.kernel import attend
from tests.pallas_kernels.cases import from_map, random_inputs

BLOCK = 128


def checked(q, k, v, indices, nums, *, sparse_block_size, layout, softmax_scale, **rest):
    """The demands of its `configuration`."""
    assert rest == {"allow_empty_block_nums": True}
    assert (layout, sparse_block_size) == ("bshd", BLOCK)
    assert isinstance(softmax_scale, float) and softmax_scale > 0
    (batch, q_len, heads, size), kv_len = q.shape, k.shape[1]
    assert size in (64, 128) and q_len % BLOCK == kv_len % BLOCK == 0
    assert k.shape == v.shape == (batch, kv_len, heads, size)
    assert {x.dtype for x in (q, k, v)} == {jnp.dtype("bfloat16")}
    assert indices.dtype == nums.dtype == jnp.int32
    assert nums.shape == indices.shape[:3] == (batch, heads, q_len // BLOCK)
    assert 0 < indices.shape[3] <= kv_len // BLOCK


def weights(q, k, indices, nums, scale):
    """Scores in float32, -inf where a block is not among the first `nums` that are listed."""
    entries = jnp.arange(indices.shape[3])[None, None, None] < nums[..., None]
    listed = jax.nn.one_hot(indices, k.shape[1] // BLOCK, dtype=jnp.int32)
    blocks = jnp.sum(listed * entries[..., None], 3) > 0
    pairs = jnp.repeat(jnp.repeat(blocks, BLOCK, 2), BLOCK, 3)
    scores = scale * jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32)
    return jnp.where(pairs, scores, -jnp.inf)


def forward(q, k, v, indices, *, q2k_block_nums, **rest):
    checked(q, k, v, indices, q2k_block_nums, **rest)
    scores = weights(q, k, indices, q2k_block_nums, rest["softmax_scale"])
    lse = jax.nn.logsumexp(scores, -1)
    p = jnp.exp(scores - jnp.where(lse > -jnp.inf, lse, 0.0)[..., None]).astype(v.dtype)
    out = jnp.einsum("bnqk,bknd->bqnd", p, v, preferred_element_type=jnp.float32)
    some = (lse > -jnp.inf).swapaxes(1, 2)[..., None]
    out = jnp.where(some, out, jnp.nan)  # what is there for an empty list is not documented
    return {"o_tensor": out.astype(q.dtype), "lse_tensor": jnp.where(lse > -jnp.inf, lse, 7.0)}


def backward(do, q, k, v, o, lse, indices, **rest):
    q2k_block_nums = rest.pop("q2k_block_nums")
    checked(q, k, v, indices, q2k_block_nums, **rest)
    assert do.shape == o.shape == q.shape and do.dtype == o.dtype == q.dtype
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and lse.dtype == jnp.float32
    scores = weights(q, k, indices, q2k_block_nums, rest["softmax_scale"])
    p = jnp.exp(scores - lse[..., None])
    products = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    delta = products("bqnd,bqnd->bnq", o, do)
    slopes = p * (products("bqnd,bknd->bnqk", do, v) - delta[..., None])
    slopes, p = (x.astype(q.dtype) for x in (slopes, p))
    scale = rest["softmax_scale"]
    found = {
        "dq_tensor": scale * products("bnqk,bknd->bqnd", slopes, k),
        "dk_tensor": scale * products("bnqk,bqnd->bknd", slopes, q),
        "dv_tensor": products("bnqk,bqnd->bknd", p, do),
    }
    return {name: x.astype(q.dtype) for name, x in found.items()}


@pytest.fixture
def adapter(monkeypatch):
    module: Any = types.ModuleType(MODULE)
    module.block_sparse_attention_forward = forward
    module.block_sparse_attention_backward = backward
    monkeypatch.setitem(sys.modules, MODULE, module)
    return module


@pytest.fixture
def blackwell(monkeypatch):
    device = type("B200", (), {"compute_capability": "10.0", "device_kind": "NVIDIA B200"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return device


def mask_of(q_len: int, kv_len: int, lists: tuple[int, int]) -> BlockMask:
    """Random lists, the first of which are empty."""
    blocks = np.random.default_rng(0).random((*lists, -(-q_len // BLOCK), kv_len // BLOCK)) < 0.6
    blocks[..., 0, :] = False
    return from_map(blocks, None, (BLOCK, BLOCK, q_len, kv_len))


@functools.partial(jax.jit, static_argnums=0)
def answers(kernel, inputs, mask, cut) -> Any:
    """Values, log-sum-exp and gradients; those of the values of some queries are 0."""
    q, k, v, d_out, d_lse = inputs

    def run(q, k, v):
        if kernel is not None:
            return attend(kernel, q, k, v, mask, 0.2)
        options = {"return_lse": True, "implementation": "reference", "scale": 0.2}
        return block_sparse_attention(q, k, v, mask, **options)

    both, pull = jax.vjp(run, q, k, v)
    out, lse = jax.tree.leaves(both)
    return out, lse, pull(((d_out * cut).astype(out.dtype), d_lse.astype(jnp.float32)))


@pytest.mark.parametrize(("lists", "kv_heads", "size"), [((2, 2), 1, 40)])
def test_values_and_gradients_of_both_outputs_are_those_of_the_reference(
    lists, kv_heads, size, adapter
):
    mask = mask_of(200, 384, lists)
    options = {"heads": 2, "kv_heads": kv_heads, "size": size}
    inputs = random_inputs(1, mask, dtype="bfloat16", **options)
    wide = tuple(x.astype("float32") for x in inputs)
    cut = jnp.asarray(np.arange(200) % 3 > 0)[None, :, None, None]  # else the log-sum-exp alone
    out, lse, ours = answers(Cudnn(), inputs, mask, cut)
    exact, exact_lse, slopes = answers(None, wide, mask, cut)
    plain, _, near = answers(None, inputs, mask, cut)
    assert out.dtype == jnp.bfloat16 and np.isinf(exact_lse).any()
    np.testing.assert_allclose(lse, exact_lse, atol=1e-4)
    assert distance(out, exact) <= 2 * distance(plain, exact)
    for one, two, three in zip(ours, slopes, near, strict=True):
        assert one.dtype == jnp.bfloat16
        assert distance(one, two) <= 2 * distance(three, two)


def test_queries_that_do_not_count_give_nothing(adapter):
    mask = BlockMask.full(256, 256)
    mask = dataclasses.replace(mask, q_lengths=jnp.array([[100, 128]], jnp.int32))
    inputs = random_inputs(2, mask, batch=1, heads=2, kv_heads=2, size=64, dtype="bfloat16")
    out, lse, (d_q, *_) = answers(Cudnn(), inputs, mask, jnp.ones((1, 1, 1, 1)))
    for one in (out, d_q):
        assert not np.asarray(one[:, 100:128]).any() and np.asarray(one[:, :100]).all()
    assert np.isinf(lse[:, :, 100:128]).all() and np.isfinite(lse[:, :, :100]).all()


def test_it_serves_blackwell_where_it_is_asked_for_only(adapter, blackwell):
    mask = BlockMask.full(256, 256)
    q, k, *_ = random_inputs(0, mask, size=64, dtype="bfloat16")
    asked = explain(q, k, mask, "cudnn")
    assert asked == ("cudnn", "it was asked for; they are those of NVIDIA's cuDNN frontend")
    assert explain(q, k, mask).implementation in ("xla", "reference")


def test_gradients_in_one_order_are_refused(adapter, blackwell):
    mask = BlockMask.full(256, 256)
    q, k, v, *_ = random_inputs(0, mask, size=64, dtype="bfloat16")
    with pytest.raises(KernelUnavailable, match="cudnn: it adds gradients .* in no fixed order"):
        block_sparse_attention(q, k, v, mask, implementation="cudnn", deterministic=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "float16"}, "the inputs are float16, not bfloat16"),
        ({"size": 192}, "the head size 192 is above 128"),
        ({"block": 64}, "blocks of 64 queries and 64 keys are not of 128"),
        ({"kv_len": 200}, "some of the 200 keys do not fill a block of 128"),
        ({"time": True}, "blocks are attended to in part"),
        ({"capability": "9.0"}, "compute capability 9.0, not 10.0"),
    ],
)
def test_what_it_cannot_serve_has_a_reason(change, text, adapter, blackwell, monkeypatch):
    block, kv_len = change.get("block", BLOCK), change.get("kv_len", 256)
    mask = BlockMask.full(256, kv_len, block, block)
    if change.get("time"):
        mask = BlockMask.causal(np.arange(256) // 100, BLOCK, BLOCK)
    options = {"size": change.get("size", 64), "dtype": change.get("dtype", "bfloat16")}
    q, k, v, *_ = random_inputs(0, mask, **options)
    blackwell.compute_capability = change.get("capability", "10.0")
    with pytest.raises(KernelUnavailable, match=text):
        block_sparse_attention(q, k, v, mask, implementation="cudnn")


def test_what_is_missing_is_named(blackwell, monkeypatch):
    mask = BlockMask.full(256, 256)
    q, k, v, *_ = random_inputs(0, mask, size=64, dtype="bfloat16")
    monkeypatch.setitem(sys.modules, "cudnn", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(KernelUnavailable, match="pip install 'nvidia-cudnn-frontend>=1.32'"):
        block_sparse_attention(q, k, v, mask, implementation="cudnn")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(KernelUnavailable, match="cudnn: the default device is cpu, not gpu"):
        block_sparse_attention(q, k, v, mask, implementation="cudnn")


def distance(one, two):
    one, two = (np.asarray(x, np.float64) for x in (one, two))
    return np.linalg.norm(one - two) / np.linalg.norm(two)
