import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.evaluation.temporal import frame_change, jitter, seam_index


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
    with pytest.raises(ConfigError, match="in clips of 6 frames.* frames 1 to 5"):
        seam_index(ramp([0.01] * 5), borders)
