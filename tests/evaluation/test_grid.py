import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jvdm.evaluation.grid import closed, count_components, dilate, erode, opened


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7])
def test_components_are_those_of_scipy(rng, share):
    masks = rng.random((6, 24, 31)) < share
    counts = jax.jit(count_components)(jnp.asarray(masks))
    for mask, count in zip(masks, counts, strict=True):
        labels = np.zeros(mask.shape, np.int32)
        ndimage.label(mask, np.ones((3, 3)), output=labels)
        assert count == labels.max()


def test_a_winding_path_is_one_component():
    mask = np.zeros((21, 21), bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    assert int(count_components(jnp.asarray(mask)[2:9])) == 1
    assert int(count_components(jnp.zeros((4, 4), bool))) == 0


def test_cells_that_connect_are_no_components():
    mask = np.zeros((9, 30), bool)
    mask[3:6, 2:6] = mask[3:6, 20:25] = True
    bridge = np.zeros_like(mask)
    bridge[4, 5:21] = True
    bridge[8, 28] = True  # alone
    assert int(count_components(jnp.asarray(mask))) == 2
    assert int(count_components(jnp.asarray(mask), jnp.asarray(bridge))) == 1
    bridge[5:8, 5] = bridge[7, 5:21] = bridge[5:8, 20] = True  # below all that counts
    assert int(count_components(jnp.asarray(mask), jnp.asarray(bridge))) == 1


@pytest.mark.parametrize("reach", [1, 2, 5])
def test_morphology_is_that_of_scipy(rng, reach):
    mask = rng.random((2, 20, 27)) < 0.6
    square = np.ones((1, 2 * reach + 1, 2 * reach + 1))
    grown = ndimage.binary_dilation(mask, square)
    assert np.array_equal(dilate(jnp.asarray(mask), reach), grown)
    shrunk = ndimage.binary_erosion(mask, square, border_value=1)
    assert np.array_equal(erode(jnp.asarray(mask), reach), shrunk)


def test_opening_removes_slivers_and_closing_fills_gaps():
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10] = True
    mask[15, :] = True
    block = mask.copy()
    block[15] = False
    assert np.array_equal(opened(jnp.asarray(mask), 1), block)
    holed = block.copy()
    holed[4:6, 4:6] = False
    assert np.array_equal(closed(jnp.asarray(holed), 1), block)
