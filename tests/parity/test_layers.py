"""Layers against PyTorch's own, with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.models import layers
from jvdm.vae import conv
from pallas_kernels.attention import api
from tests.parity.compare import assert_equal

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")
functional = torch.nn.functional

pytestmark = pytest.mark.parity


def tensor(array):
    return torch.from_numpy(np.array(array))


def heads_first(array):
    return tensor(array).transpose(1, 2)


def normal(rng, *shape) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.fixture
def qkv(rng):
    return normal(rng, 2, 6, 3, 8), normal(rng, 2, 9, 3, 8), normal(rng, 2, 9, 3, 8)


def test_attention_with_a_mask(qkv, rng):
    mask = rng.random((2, 1, 6, 9)) < 0.6
    mask[..., 0] = True
    q, k, v = map(heads_first, qkv)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=tensor(mask))
    actual = api.dense_attention(*qkv, mask=jnp.asarray(mask))
    assert_equal(actual, expected.transpose(1, 2))


def test_attention_with_padding(qkv):
    lengths = np.array([4, 9])
    mask = np.arange(9)[None, None, None] < lengths[:, None, None, None]
    q, k, v = map(heads_first, qkv)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=tensor(mask))
    actual = api.dense_attention(*qkv, kv_lengths=jnp.asarray(lengths))
    assert_equal(actual, expected.transpose(1, 2))


def test_norm(rng):
    x, gain = normal(rng, 2, 5, 16), normal(rng, 16)
    expected = functional.rms_norm(tensor(x), (16,), tensor(gain), eps=1e-6)
    assert_equal(layers.RMSNorm().apply({"params": {"gain": gain}}, x), expected)


def test_feed_forward(rng):
    x = normal(rng, 2, 5, 16)
    module = layers.FeedForward(dtype="float32")
    variables = module.init(jax.random.key(0), x)
    up, down = (tensor(variables["params"][name]["kernel"]) for name in ("up", "down"))
    expected = functional.gelu(tensor(x) @ up, approximate="tanh") @ down
    assert_equal(module.apply(variables, x), expected)


def test_rotation_is_a_product_of_complex_numbers(rng):
    x = normal(rng, 2, 12, 3, 16)
    table = layers.rotary_table(jnp.arange(2.0), 2, 3, axes=(4, 6, 6), base=100.0)
    cosine, sine = map(tensor, table.tokens())
    first, second = tensor(x).chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.complex(cosine, sine)[None, :, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    assert_equal(layers.rotate(x, table), expected)


def test_spatial_convolution(rng):
    x = normal(rng, 2, 3, 6, 5, 4)
    module = conv.SpatialConv(7, dtype=jnp.float32)
    variables = module.init(jax.random.key(0), x)
    weights = variables["params"]["conv"]
    kernel = tensor(weights["kernel"]).permute(3, 2, 0, 1)
    images = tensor(x).flatten(0, 1).permute(0, 3, 1, 2)
    expected = functional.conv2d(images, kernel, tensor(weights["bias"]), padding=1)
    expected = expected.permute(0, 2, 3, 1).unflatten(0, (2, 3))
    assert_equal(module.apply(variables, x), expected)


def test_temporal_mix_is_a_causal_convolution(rng):
    x = normal(rng, 2, 5, 3, 4, 6)
    module = conv.TemporalMix(dtype=jnp.float32)
    variables = module.init(jax.random.key(0), x, None)
    weights = variables["params"]["conv"]
    kernel = tensor(weights["kernel"]).permute(3, 2, 0, 1)[..., None]
    volume = tensor(x).permute(0, 4, 1, 2, 3)
    padded = functional.pad(volume, (0, 0, 0, 0, conv.TAPS - 1, 0), mode="replicate")
    expected = functional.conv3d(padded, kernel, tensor(weights["bias"]))
    actual, _ = module.apply(variables, x, None)
    assert_equal(actual, expected.permute(0, 2, 3, 4, 1))
