import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.samplers import Call, corrupt, make_denoiser, rectified_flow, vp_cosine
from jvdm.samplers.process import from_x0_eps
from tests.samplers.problems import noise_like

T = jnp.array([[0.3, 0.9], [0.0, 1.0]])


@pytest.mark.parametrize("process", [rectified_flow(), vp_cosine()], ids=["flow", "cosine"])
@pytest.mark.parametrize("kind", ["velocity", "x0", "eps", "v"])
def test_all_kinds_of_network_say_the_same(process, kind):
    x0, eps = noise_like((2, 2, 3)), noise_like((2, 2, 3), 1)
    x = corrupt(process, x0, T, eps)

    def network(x, call, carry):
        return from_x0_eps(process, kind, x0, eps, call.t), carry

    denoised, _ = make_denoiser(network, process, kind)(x, Call.at(T), None)
    noisy, clean_or_pure = slice(0, 1), slice(1, 2)
    np.testing.assert_allclose(denoised.x0[noisy], x0[noisy], atol=2e-5)
    np.testing.assert_allclose(denoised.eps[noisy], eps[noisy], atol=2e-5)
    np.testing.assert_allclose(denoised.x0[clean_or_pure, 0], x0[clean_or_pure, 0], atol=2e-5)
    np.testing.assert_allclose(denoised.eps[clean_or_pure, 1], eps[clean_or_pure, 1], atol=2e-5)


def test_half_precision_output_becomes_float32():
    def network(x, call, carry):
        return x.astype(jnp.bfloat16), carry

    denoised, _ = make_denoiser(network, rectified_flow())(noise_like((2, 2, 3)), Call.at(T), None)
    assert denoised.x0.dtype == denoised.eps.dtype == jnp.float32


def test_the_network_is_told_its_own_time_and_keeps_its_carry():
    told = []

    def network(x, call, carry):
        told.append(call)
        return x, carry + 1

    process = rectified_flow(model_time=lambda t: 1000 * t)
    call = Call.at(T, 0.5 * T)
    _, carry = make_denoiser(network, process)(noise_like((2, 2, 3)), call, 4)
    np.testing.assert_allclose(told[0].t, 1000 * T)
    np.testing.assert_allclose(told[0].t_next, 500 * T)
    assert told[0].row is call.row
    assert carry == 5


def test_a_call_outside_of_a_run_leads_to_clean_data_and_writes_nothing():
    call = Call.at(T)
    np.testing.assert_array_equal(call.t, T)
    np.testing.assert_array_equal(call.t_next, jnp.zeros_like(T))
    assert (call.row.index, call.row.start) == (0, 0)
    np.testing.assert_array_equal(call.row.write, [False, False])
