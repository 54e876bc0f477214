import jax
import jax.numpy as jnp
import numpy as np

from jvdm.samplers import consecutive, initial_noise

draw = jax.jit(initial_noise, static_argnums=(2, 3))


def test_a_frame_does_not_depend_on_what_is_drawn_with_it(key):
    everything = draw(key, jnp.arange(5), 7, (2, 3, 4), 0)
    chosen = jnp.array([3, 1])
    part = draw(key, chosen, 2, (2, 3, 4), 4)
    np.testing.assert_array_equal(part, everything[chosen, 4:6])


def test_noise_is_standard_normal_and_independent(key):
    noise = draw(key, jnp.arange(8), 6, (8, 8, 4))
    assert noise.dtype == jnp.float32
    count = noise.size
    assert abs(float(noise.mean())) < 4 / count**0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / count) ** 0.5
    correlations = np.corrcoef(np.asarray(noise).reshape(48, -1))
    off_diagonal = correlations[~np.eye(48, dtype=bool)]
    assert abs(off_diagonal).max() < 5 / 256**0.5
    other_seed = draw(jax.random.key(1), jnp.arange(8), 6, (8, 8, 4))
    assert abs(float(jnp.mean(noise * other_seed))) < 4 / count**0.5


def test_addresses_count_from_the_first_frame():
    address = consecutive(2, 3, first_frame=5)
    np.testing.assert_array_equal(address.samples, [0, 1])
    np.testing.assert_array_equal(address.frames, [5, 6, 7])
