"""Windows in time and space that shift: masked full attention, linear cost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import AttentionCall, Dense, TemporalSwin, TokenGrid
from jvdm.attention.temporal_swin import windowed
from jvdm.errors import ConfigError
from jvdm.parallel import attention
from jvdm.samplers import Call
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


def attended(policy, layer, q=Q, k=K, v=V):
    """What a policy makes of the tokens in a layer."""
    one = Call.at(jnp.ones((2, SIDES[0])))
    call = AttentionCall(jnp.int32(layer), one.row, one.t, TokenGrid(*SIDES, 2))
    return policy.attend(q, k, v, None, call, attention)[0]


def test_windows_shift_in_odd_layers_and_one_of_all_tokens_is_full_attention():
    layers = [attended(TemporalSwin((4, 2, 2)), layer) for layer in range(3)]
    np.testing.assert_array_equal(layers[0], layers[2])
    np.testing.assert_allclose(layers[0], masked((4, 2, 2), (0, 0, 0)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layers[1], masked((4, 2, 2), (2, 1, 1)), rtol=1e-4, atol=1e-5)
    for layer in range(2):
        whole = attended(TemporalSwin(SIDES), layer)
        np.testing.assert_allclose(whole, attended(Dense(), layer), rtol=1e-4, atol=1e-5)


def test_windows_of_some_tokens_are_refused():
    with pytest.raises(ConfigError, match="windows among 24 of 60 tokens"):
        attended(TemporalSwin(), 0, Q[:, :24], K[:, :24], V[:, :24])


@pytest.mark.parametrize("window", [(0, 2, 2), (2, 2)])
def test_windows_without_tokens_are_refused(window):
    with pytest.raises(ConfigError, match=f"windows of {' x '.join(map(str, window))} tokens"):
        TemporalSwin(window)
