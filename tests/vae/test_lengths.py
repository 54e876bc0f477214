"""Any length in pieces of any size, and in tiles of which the last is one cell: the whole.

What users of other programs report: a decoder in pieces or tiles that drops a frame, spoils the
last four, or has another contrast in some frames.
"""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from jvdm.vae import tiling
from tests.vae import test_ltx, test_wan
from tests.vae.nano import NANO, QUICK, params

CASES: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "own": ((19, 21), (3, 4)),
    "wan 2.1": ((19, 13), (6, 6)),
    "wan 2.2": ((19, 13), (6, 6)),
    "ltx": ((1, 2), None),
}
"""Sizes of latents and of tiles: one cell is left each way; LTX-Video is not tiled."""


def network(name) -> tuple[Any, Any]:
    """Returns an autoencoder and its parameters."""
    if name == "own":
        return NANO, params()
    if name == "ltx":
        model, tree = test_ltx.network("ltx_vae_0_9_1")
        return model.clone(noise=0.3), tree
    return test_wan.pieces(name.removeprefix("wan "))[:2]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_length_in_any_pieces_is_the_whole(name):
    """Random latents of 3 to 10 frames, in pieces of 1, 2, 3 and 5."""
    (vae, tree), (size, tile) = network(name), CASES[name]
    if tile:
        assert len(tiling.make_tiling(size, tile, vae.decoder_reach).tiles) > 1
        assert all(side % part == 1 for side, part in zip(size, tile, strict=True))
    run = functools.partial(vae.apply, method="decode")
    decode = jax.jit(run, compiler_options=QUICK)
    z = np.random.default_rng(7).normal(size=(1, 10, *size, vae.latent_channels))
    for count in range(3, 11):
        given = z[:, :count].astype(np.float32)
        whole = np.asarray(decode({"params": tree}, given))
        assert whole.shape[1] == vae.num_frames(count)
        for chunk in (1, 2, 3, 5):
            found = np.concatenate([*tiling.decode(vae, tree, given, tile=tile, chunk=chunk)], 1)
            assert found.shape == whole.shape, (count, chunk)
            np.testing.assert_allclose(
                found, whole, rtol=0, atol=2e-5 * np.abs(whole).max(), err_msg=f"{count}, {chunk}"
            )
