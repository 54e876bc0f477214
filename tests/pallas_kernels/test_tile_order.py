"""The order of tiles: a permutation that can be undone, whose blocks are compact."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import TileOrder

sizes = st.tuples(*[st.integers(1, 6)] * 3)


@settings(max_examples=30)
@given(sizes, sizes)
def test_order_is_undone_and_blocks_are_tiles(grid, tile):
    tile = tuple(min(part, side) for part, side in zip(tile, grid, strict=True))
    order = TileOrder(grid, tile)
    x = np.random.default_rng(0).normal(size=(2, order.tokens, 3)).astype(np.float32)
    turned = np.asarray(order.apply(jnp.asarray(x)))
    assert turned.shape == (2, order.num_slots, 3)
    np.testing.assert_array_equal(order.undo(jnp.asarray(turned)), x)
    np.testing.assert_array_equal(turned[:, ~order.holds], 0)
    assert order.is_padded == (order.num_slots > order.tokens)
    assert order.lengths.sum() == order.tokens
    places = np.indices(grid).reshape(3, -1)
    for block, length in zip(order.slots.reshape(-1, order.block), order.lengths, strict=True):
        assert (block[:length] < order.tokens).all() and (block[length:] == order.tokens).all()
        own = places[:, block[:length]] // np.array(tile)[:, None]
        assert (own == own[:, :1]).all()


def test_order_of_any_axis():
    order = TileOrder((1, 4, 4), (1, 2, 2))
    assert not order.is_padded
    x = jnp.arange(16)
    assert order.apply(x, 0)[:8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    wide = jnp.stack([jnp.stack([x, x + 16])] * 3, -1)
    np.testing.assert_array_equal(order.apply(wide)[1, :, 2], order.apply(x, 0) + 16)


@pytest.mark.parametrize("tile", [(1, 5, 2), (0, 2, 2)])
def test_a_tile_larger_than_the_grid_is_refused(tile):
    with pytest.raises(ValueError, match=r"tiles of .* on a grid of \(2, 4, 4\)"):
        TileOrder((2, 4, 4), tile)
