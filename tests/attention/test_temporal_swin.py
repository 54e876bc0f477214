"""Windows in time and space that shift: masked full attention, linear cost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention.temporal_swin import windowed
from pallas_kernels import dense_attention

SIDES = (5, 3, 4)
Q, K, V = (jax.random.normal(jax.random.key(i), (2, 60, 2, 8)) for i in range(3))


def masked(window, shift):
    """Full attention among the tokens of each window, one query after the other."""
    places = np.stack(np.unravel_index(np.arange(60), SIDES), -1)
    number = (places + np.array(shift)) // np.array(window)
    same = (number[:, None] == number[None]).all(-1)
    out = np.zeros(Q.shape, np.float32)
    for query in range(60):
        keys = np.flatnonzero(same[query])
        out[:, query] = dense_attention(Q[:, query : query + 1], K[:, keys], V[:, keys])[:, 0]
    return out


@pytest.mark.parametrize("window", [(4, 2, 2), (8, 4, 4), (2, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("odd", [0, 1])
def test_windows_are_full_attention_within_them(window, odd):
    shift = [odd * (part // 2) * (part < side) for part, side in zip(window, SIDES, strict=True)]
    made = jax.jit(
        lambda q, k, v, shift: windowed(q, k, v, sides=SIDES, window=window, shift=shift)
    )(Q, K, V, [jnp.int32(by) for by in shift])
    np.testing.assert_allclose(made, masked(window, shift), rtol=1e-4, atol=1e-5)


def test_gradients_stay_within_windows():
    def read(v, token):
        made = windowed(Q, K, v, sides=SIDES, window=(4, 2, 2), shift=(2, 1, 1))
        return made[:, token].sum()

    gradient = np.abs(jax.jit(jax.grad(read), static_argnums=1)(V, 17)).max((0, 2, 3))
    places = [np.array(place) for place in itertools.product(*map(range, SIDES))]
    window = [tuple((place + [2, 1, 1]) // [4, 2, 2]) for place in places]
    assert [value > 0 for value in gradient] == [one == window[17] for one in window]
