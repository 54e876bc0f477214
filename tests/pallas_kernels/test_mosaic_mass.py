"""How much attention blocks pay to blocks, on Hopper: what it lowers to, numbers on such a GPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, block_mass
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.xla import looped_mass
from tests.pallas_kernels.cases import exact_attention, random_inputs
from tests.pallas_kernels.hopper import compiled_for_h200
from tests.pallas_kernels.test_mosaic_gpu import KERNEL, on_hopper

# Lengths, blocks, heads, heads of keys, head size.
MASSES = {
    "plain": (512, 512, 128, 128, 2, 2, 128),
    "odd": (500, 423, 64, 64, 4, 2, 64),
    "large blocks": (700, 900, 192, 256, 2, 1, 128),
    "small blocks": (404, 330, 16, 48, 2, 1, 64),
    "frames": (560, 480, 80, 32, 2, 2, 128),
}


def mass_problem(case):
    q_len, kv_len, block_q, block_kv, heads, kv_heads, size = MASSES[case]
    mask = BlockMask.full(q_len, kv_len, block_q, block_kv)
    options = {"heads": heads, "kv_heads": kv_heads, "size": size, "dtype": "bfloat16"}
    q, k, v, *_ = random_inputs(5, mask, **options)
    _, lse = exact_attention(q, k, v, mask.token_mask())
    return (q, k, jnp.asarray(lse, jnp.float32)), (block_q, block_kv)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "odd", "small blocks"])
def test_mass_for_h200_keeps_everything_in_registers(case, tmp_path, monkeypatch):
    inputs, blocks = mass_problem(case)
    (report,) = compiled_for_h200(
        lambda q, k, lse: KERNEL.mass(q, k, lse, *blocks, 0.1), inputs, tmp_path, monkeypatch
    )
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert "C7512" not in report


def test_mass_lowers_without_a_gpu_and_is_refused_on_one_without_it():
    inputs, blocks = mass_problem("odd")
    lengths = some_keys(inputs[1], blocks[1])
    mass = jax.jit(lambda q, k, lse: KERNEL.mass(q, k, lse, *blocks, 0.1, lengths))
    traced = mass.trace(*inputs)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("@mosaic_gpu") == 2
    if jax.default_backend() == "cpu":
        with pytest.raises(NotImplementedError, match="mosaic_gpu: the default device is cpu"):
            block_mass(*inputs, *blocks, implementation="mosaic_gpu")


@on_hopper
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("case", MASSES)
def test_mass_is_that_of_a_loop_in_float32(case, short):
    (q, k, lse), blocks = mass_problem(case)
    lse = lse.at[..., 7].set(-jnp.inf)  # a query that does not count
    lengths = some_keys(k, blocks[1]) if short else None
    options: dict[str, Any] = {"kv_lengths": lengths}
    fast = block_mass(q, k, lse, *blocks, implementation="mosaic_gpu", **options)
    wide = (q.astype("float32"), k.astype("float32"), lse)
    plain = block_mass(*wide, *blocks, implementation="xla", **options)
    np.testing.assert_allclose(fast, plain, rtol=2e-3, atol=1e-5 if short else 1e-7)


def some_keys(k, block_kv):
    """Returns lengths of blocks: whole ones, one without a key, one of a single key."""
    starts = np.arange(0, k.shape[1], block_kv)
    lengths = np.minimum(block_kv, k.shape[1] - starts)
    lengths[:3] = lengths[0], 0, 1
    return jnp.asarray(lengths[None], jnp.int32).at[:, -1].add(-5)


@pytest.mark.parametrize("case", MASSES)
def test_mass_of_keys_that_do_not_count_is_taken_off(case, monkeypatch):
    """What surrounds the kernel; a loop stands for it, which counts all keys as it does."""

    def counted(q, k, lse, unit, scale, keys, *_):
        level = jnp.where(jnp.isinf(lse), -jnp.inf, lse)[..., : q.shape[1]]
        sums = looped_mass(q, k[:, :keys], level, 16, unit, scale, None)
        return jnp.pad(sums, ((0, 0), (0, 0), (0, lse.shape[2] // 16 - sums.shape[2]), (0, 0)))

    monkeypatch.setattr(mosaic_gpu, "mass", counted)
    monkeypatch.setattr(mosaic_gpu, "mass_stages", lambda *_: 2)
    (q, k, lse), blocks = mass_problem(case)
    lse, lengths = lse.at[..., 7].set(-jnp.inf), some_keys(k, blocks[1])
    ours = KERNEL.mass(q, k, lse, *blocks, 0.1, lengths)
    plain = looped_mass(q, k, lse, *blocks, 0.1, lengths)
    assert not ours[..., 1].any()
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)
