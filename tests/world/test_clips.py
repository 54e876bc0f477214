import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.world.captions import caption_text
from jvdm.world.clips import clips
from jvdm.world.scene import World
from jvdm.world.vocabulary import MAX_TOKENS

TINY = World(height=8, width=12, num_frames=5)
MAKE = jax.jit(lambda indices: clips(TINY, "val", indices))


def test_shapes_and_ranges():
    clip = MAKE(jnp.arange(3))
    assert clip.video.shape == (3, 5, 8, 12, 3) and clip.video.dtype == jnp.float32
    assert clip.tokens.shape == (3, MAX_TOKENS) and clip.tokens.dtype == jnp.int32
    assert clip.facts.position.shape == (3, 5, 3, 3)
    assert float(clip.video.min()) >= 0 and float(clip.video.max()) <= 1


def test_a_clip_depends_on_its_index_alone():
    """Random access: the batch around a clip, its place and its size do not matter."""
    batch, other = MAKE(jnp.array([4, 7, 1])), MAKE(jnp.array([900, 4, 2]))
    for one, two in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one[0], two[1], atol=1e-6)
    assert np.abs(np.asarray(batch.video[0] - batch.video[1])).max() > 0.1


def test_an_index_is_traced():
    traced = []

    @jax.jit
    def facts(indices):
        traced.append(indices)
        return clips(TINY, "val", indices).facts.color

    assert (np.asarray(facts(jnp.arange(3))) != np.asarray(facts(jnp.arange(3) + 5))).any()
    assert len(traced) == 1


def test_a_stride_picks_frames_of_the_same_clip():
    strided = jax.jit(lambda i: clips(TINY, "val", i, stride=2))(jnp.arange(3))
    whole = MAKE(jnp.arange(3))
    np.testing.assert_allclose(strided.video, whole.video[:, ::2], atol=1e-5)
    np.testing.assert_allclose(strided.facts.position, whole.facts.position[:, ::2], atol=1e-6)
    np.testing.assert_array_equal(strided.tokens, whole.tokens)


def test_captions_are_sentences():
    for ids in np.asarray(MAKE(jnp.arange(3)).tokens):
        text = caption_text(ids)
        assert text[0].isupper() and text.endswith(".")


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="'dev' does not exist"):
        clips(TINY, "dev", jnp.arange(1))
