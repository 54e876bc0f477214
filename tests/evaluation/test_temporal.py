import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.evaluation.temporal import frame_change, jitter, seam_index, warp_residual


def ramp(steps):
    """A clip whose brightness changes by these steps."""
    levels = jnp.cumsum(jnp.asarray([0.1, *steps]))
    return jnp.broadcast_to(levels[None, :, None, None, None], (1, len(levels), 4, 6, 3))


def test_change_is_the_mean_step():
    np.testing.assert_allclose(frame_change(ramp([0.02] * 8)), 0.02, rtol=1e-5)
    np.testing.assert_allclose(frame_change(ramp([0.0] * 8)), 0.0)


def test_jitter_sees_what_goes_back_and_forth_and_no_steady_motion():
    np.testing.assert_allclose(jitter(ramp([0.02] * 8)), 0.0, atol=1e-6)
    np.testing.assert_allclose(jitter(ramp([0.02, -0.02] * 4)), 0.04, rtol=1e-5)


def test_the_seam_index_finds_the_border():
    clip = ramp([0.01, 0.01, 0.01, 0.2, 0.01, 0.01, 0.01])
    assert seam_index(clip, [4])[0] > 15
    assert 0.9 < seam_index(clip, [3, 5])[0] < 1.1
    assert seam_index(clip)[0] == seam_index(clip, [4])[0]


def test_borders_are_compared_with_the_other_frames():
    """Three of five frames begin a chunk: their own jumps are not what is usual."""
    clip = ramp([0.2, 0.2, 0.2, 0.01, 0.01])
    assert seam_index(clip, [1, 2, 3])[0] > 15
    assert seam_index(clip, [5])[0] < 1
    assert seam_index(ramp([0.01] * 5), [1, 2, 3])[0] == pytest.approx(1, abs=1e-3)
    assert seam_index(ramp([0.2, 0.1]))[0] == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize("borders", [[], [0], [-1], [6], [3, 99], [1, 2, 3, 4, 5]])
def test_a_border_that_is_none_is_refused(borders):
    with pytest.raises(ConfigError, match="frames 1 to 5"):
        seam_index(ramp([0.01] * 5), borders)


def test_the_residual_is_zero_along_the_true_flow(rng):
    scene = rng.random((12, 40, 3))
    clip = jnp.asarray(np.stack([scene[:, 8 - 2 * t : 24 - 2 * t] for t in range(4)])[None])
    flow = jnp.broadcast_to(jnp.array([2.0, 0.0])[None, None, None, None], (1, 3, 12, 16, 2))
    visible = jnp.broadcast_to(jnp.arange(16)[None, None, None] < 14, (1, 3, 12, 16))
    np.testing.assert_allclose(warp_residual(clip, flow, visible), 0.0, atol=1e-10)
    assert warp_residual(clip, 0 * flow, visible)[0] > 0.05
    flicker = clip.at[:, 1].add(0.1)
    np.testing.assert_allclose(warp_residual(flicker, flow, visible), 0.01 * 2 / 3, rtol=1e-3)
