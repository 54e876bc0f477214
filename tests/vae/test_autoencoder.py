"""Sizes are asked from an instance, whatever its strides are."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvdm.errors import ShapeError
from jvdm.vae.autoencoder import Autoencoder
from jvdm.vae.video_vae import VideoVAE


@dataclasses.dataclass(frozen=True)
class Sizes(Autoencoder):
    """Strides as fields: a family may choose them per instance."""

    strides: tuple[int, int, int] = (4, 8, 8)


WIDE = Sizes((8, 4, 16))


def test_the_sizes_of_one_instance_are_no_matter_of_another():
    assert Sizes().latent_frames(17) == 5 and WIDE.latent_frames(17) == 3
    assert Sizes().num_frames(5) == 17 and WIDE.num_frames(3) == 17
    assert Sizes().latent_size(32, 64) == (4, 8) and WIDE.latent_size(32, 64) == (8, 4)
    assert VideoVAE().latent_size(32, 64) == (4, 8) and VideoVAE().latent_frames(17) == 5


@given(stride=st.integers(1, 9), num_frames=st.integers(0, 60))
def test_a_prefix_determines_whole_groups_alone(stride, num_frames):
    sizes = Sizes((stride, 8, 8))
    latents = sizes.latents_of_prefix(num_frames)
    used = sizes.prefix_of_latents(latents)
    assert used <= num_frames < sizes.prefix_of_latents(latents + 1)
    if num_frames == used > 0:
        assert sizes.latent_frames(num_frames) == latents
        assert sizes.num_frames(latents) == num_frames


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WIDE.latent_frames(16), r"num_frames is 16; .*8n \+ 1; .*: 9 and 17"),
        (lambda: WIDE.latent_size(30, 32), "height is 30; .* multiple of 4; .*: 28 and 32"),
        (lambda: WIDE.latent_size(32, 30), "width is 30; .* multiple of 16; .*: 16 and 32"),
        (lambda: WIDE.latent_size(32, 48, patch=2), "width is 48; .* of 32; .*: 32 and 64"),
        (lambda: WIDE.num_frames(0), "latent_frames is 0"),
    ],
)
def test_errors_name_the_nearest_sizes_of_the_instance(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_a_patch_leaves_the_count_of_cells():
    assert WIDE.latent_size(32, 64, patch=2) == WIDE.latent_size(32, 64)
    assert np.prod(WIDE.latent_size(32, 64)) == 32
