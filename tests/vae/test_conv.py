import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import features
from jvdm.vae import conv
from pallas_kernels import norm_silu
from tests.vae.nano import QUICK


def _features(frames=5, channels=8):
    values = np.random.default_rng(0).standard_normal((2, frames, 4, 6, channels), np.float32)
    return jnp.asarray(values)


def _start(module: Any, *arguments):
    """Returns the module as a compiled function of arrays, with fresh parameters in it."""
    init = jax.jit(lambda key: module.init(key, *arguments), compiler_options=QUICK)
    return functools.partial(
        jax.jit(module.apply, static_argnames="starts_video"), init(jax.random.key(0))
    )


def test_unfold_inverts_fold_and_a_cell_holds_its_own_square():
    x = _features()
    folded = features.fold(x, 2)
    assert folded.shape == (2, 5, 2, 3, 32)
    np.testing.assert_array_equal(features.unfold(folded, 2), x)
    np.testing.assert_array_equal(np.sort(folded[0, 0, 1, 2]), np.sort(np.ravel(x[0, 0, 2:4, 4:6])))


def test_norm_ignores_the_scale_of_its_input_and_rounds_only_at_the_end():
    x = _features().astype(jnp.bfloat16)
    norm = _start(conv.NormSilu(), x)
    exact = norm(x.astype(jnp.float32))
    rounded = norm(x)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))
    np.testing.assert_allclose(norm(1e3 * x.astype(jnp.float32)), exact, rtol=1e-5, atol=1e-6)


def test_a_still_video_stays_still_through_the_temporal_mix():
    still = jnp.tile(_features(1), (1, 6, 1, 1, 1))
    y, _ = _start(conv.TemporalMix(dtype=jnp.float32), still, None)(still, None)
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), atol=1e-6)
    assert float(jnp.abs(y).max()) > 0.1


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4), (3,)])
def test_temporal_mix_in_pieces_equals_the_whole(cuts):
    x = _features()
    mix = _start(conv.TemporalMix(dtype=jnp.float32), x, None)
    whole, _ = mix(x, None)
    pieces, context = [], None
    for piece in jnp.split(x, cuts, axis=1):
        y, context = mix(piece, context)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(context, x[:, -2:])


@pytest.mark.parametrize("gain", [0.1, 1.0])
def test_kernels_start_with_the_wanted_spread(key, gain):
    kernel = conv.fan_in_normal(gain)(key, (3, 3, 64, 64))
    assert float(kernel.std()) == pytest.approx(gain / np.sqrt(9 * 64), rel=0.02)


@pytest.mark.parametrize("starts_video", [True, False])
def test_rates_halve_and_double_around_a_lone_first_frame(starts_video):
    lone = int(starts_video)
    x = _features(lone + 4)
    halve = _start(conv.TimeHalve(16, jnp.float32), x, starts_video)
    slow = halve(x, starts_video=starts_video)
    assert slow.shape == (2, lone + 2, 4, 6, 16)
    double = _start(conv.TimeDouble(8, jnp.float32), slow, starts_video)
    fast = double(slow, starts_video=starts_video)
    assert fast.shape == x.shape


def test_halving_sees_both_frames_of_a_pair_and_no_other():
    x = _features(5)
    halve = _start(conv.TimeHalve(8, jnp.float32), x, True)

    @jax.jit
    def gradient(x, frame):
        return jax.grad(lambda x: halve(x, starts_video=True)[:, frame].sum())(x)

    seen = [np.flatnonzero(gradient(x, n).any((0, 2, 3, 4))).tolist() for n in range(3)]
    assert seen == [[0], [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("size", "strides", "around"),
    [
        ((3, 3, 3), (1, 1, 1), None),
        ((3, 1, 1), (2, 1, 1), None),
        ((1, 3, 3), (1, 2, 2), ((0, 1), (0, 1))),
        ((3, 3, 3), (2, 2, 2), ((1, 1), (2, 0))),
    ],
)
def test_a_video_is_convolved_as_in_three_axes(size, strides, around):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 8, 5))
    ours = conv.VideoConv(4, size, strides, around, "float32")
    params = ours.init(jax.random.key(1), x)
    params["params"]["bias"] = jnp.arange(4.0)
    padding = [(0, 0), *(around or [(taps // 2, taps // 2) for taps in size[1:]])]
    whole = nn.Conv(4, size, strides, padding).apply(params, x)
    np.testing.assert_allclose(jnp.asarray(ours.apply(params, x)), jnp.asarray(whole), atol=3e-6)
    text = {
        platform: jax.jit(ours.apply).trace(params, x).lower(lowering_platforms=(platform,))
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "tensor<2x7x6x8x5xf32>, tensor<" not in text["cpu"].as_text().split("convolution(")[1]
    assert all("[b, 0, 1, 2, f]" in text[platform].as_text() for platform in ("cuda", "tpu"))


@pytest.mark.parametrize(
    ("size", "strides", "around"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((3, 1, 1), (2, 1, 1), None),
        ((3, 3, 3), (1, 2, 1), ((0, 1), (2, 0))),
    ],
)
def test_what_sees_few_channels_is_a_product_on_gpus(size, strides, around, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 8, 5))
    module = conv.VideoConv(70, size, strides, around, "float32")
    params = module.init(jax.random.key(1), x)
    text = {
        platform: jax.jit(module.apply).trace(params, x).lower(lowering_platforms=(platform,))
        for platform in ("cpu", "cuda", "tpu")
    }
    found = {platform: "stablehlo.convolution" in text[platform].as_text() for platform in text}
    assert found == {"cpu": True, "cuda": False, "tpu": True}
    wanted = module.apply(params, x)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, cuda, **_: cuda(*given))
    np.testing.assert_allclose(
        jnp.asarray(module.apply(params, x)), jnp.asarray(wanted), rtol=0, atol=3e-6
    )


def test_doubled_sides_are_convolved_as_repeated_cells_are():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4, 6))
    doubling = conv.DoublingConv(7, "float32")
    plain = conv.VideoConv(7, (1, 3, 3), dtype="float32")
    repeated = x.repeat(2, 2).repeat(2, 3)
    given = plain.init(jax.random.key(1), repeated)["params"]
    given = {"params": {**given, "bias": jnp.arange(7.0)}}
    wanted, found = plain.apply(given, repeated), doubling.apply(given, x)
    np.testing.assert_allclose(jnp.asarray(found), jnp.asarray(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("starts", [True, False])
def test_a_block_with_kernels_is_one_without(starts, monkeypatch):
    x = jnp.tile(_features(3), (1, 1, 1, 1, 8))[:, :, :, :4]  # 16 cells of 64 channels
    context = None if starts else x[:, 1:]
    block = conv.ResidualBlock(jnp.float32)
    weights = block.init(jax.random.key(0), x, context)
    weights = jax.tree.map(
        lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size).reshape(w.shape)), weights
    )

    def loss(weights, x):
        y, after = map(jnp.asarray, block.apply(weights, x, context))
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.square(after)), (y, after)

    def run():
        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(weights, x)

    plain = run()
    kernel = functools.partial(norm_silu, implementation="interpret")
    monkeypatch.setattr(conv, "norm_silu", kernel)
    monkeypatch.setattr(conv, "serves_norm_silu", lambda x: True)
    for ours, theirs in zip(*map(jax.tree.leaves, (run(), plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
