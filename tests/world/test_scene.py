import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.world import scene as w
from tests.world.shots import FULL, keys, many, whole

REST, LEFT, RIGHT, CLOSER, AWAY, DROPS, WANDERS = range(7)
VERBS_OF = jax.jit(jax.vmap(lambda position: w.verb_labels(position, FULL.fps)))
SPEEDS_OF = jax.jit(jax.vmap(lambda position: w.speed_labels(position, FULL.fps)))


@functools.cache
def sampler(held_out):
    def sample(key, options):
        return w.sample_scene(key, held_out=held_out, **options)

    return jax.jit(jax.vmap(sample, in_axes=(0, None)))


def scenes(split, count=256, held_out="never", **options):
    return sampler(held_out)(keys(split, count), options)


def has_pair(scene):
    return np.asarray(w.held_out_pairs()[scene.color, scene.shape])


def path(*points, frames=33, objects=3):
    """Positions `[T, objects, 3]` along a polygon; all objects alike."""
    ends = np.linspace(0, len(points) - 1, frames)
    corners = np.arange(len(points))
    track = [np.interp(ends, corners, np.array(points, np.float32)[:, i]) for i in range(3)]
    return jnp.broadcast_to(jnp.stack(track, -1)[:, None].astype(jnp.float32), (frames, objects, 3))


def test_splits_share_no_scene():
    starts = [np.asarray(scenes(split, 16).position[:, 0]) for split in w.SPLITS]
    flat = np.concatenate(starts)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="'dev' does not exist; splits are train, val"):
        w.scene_key("dev", 0)
    with pytest.raises(ConfigError, match="held_out is 'sometimes'"):
        w.sample_scene(jax.random.key(0), held_out="sometimes")
    with pytest.raises(ConfigError, match="World width is 0"):
        w.World(width=0)


@pytest.mark.parametrize("split", ["train", "val", "test", "reader"])
def test_held_out_pairs_never_appear(split):
    assert not has_pair(scenes(split)).any()


def test_held_out_pairs_appear_where_they_are_asked_for():
    only = scenes("test", held_out="only")
    assert has_pair(only)[:, 0].all()
    assert not has_pair(only)[:, 1:].any()
    assert len(np.unique(only.color[:, 0])) == len(w.HELD_OUT_PAIRS)
    assert 0.05 < has_pair(scenes("test", held_out="any")).mean() < 0.25


@pytest.mark.parametrize("held_out", ["never", "only", "any"])
def test_no_color_is_there_twice(held_out):
    colors = np.sort(np.asarray(scenes("val", held_out=held_out).color), -1)
    assert (np.diff(colors, axis=-1) > 0).all()


def test_held_out_motions_never_appear():
    table = w.held_out_motions()

    def held_out(shot):
        verb = np.asarray(VERBS_OF(shot.trajectory.position))
        camera = np.asarray(shot.scene.camera)[:, None]
        return table[verb, camera] & np.asarray(shot.scene.active)

    assert not held_out(whole()).any()
    orbit_right, drop = w.CAMERAS.index("orbit right"), w.PROGRAMMES.index("drop")
    asked: dict[str, Any] = {"camera": orbit_right, "programme": drop}
    assert (np.asarray(many(FULL, 32, **asked).scene.camera) == 0).all()
    assert held_out(many(FULL, 32, held_out="any", **asked))[:, 0].all()


def test_shares_are_those_of_the_documentation():
    scene = scenes("train", 4096)
    count = np.bincount(np.asarray(scene.active.sum(1)), minlength=4)[1:] / 4096
    np.testing.assert_allclose(count, [0.4, 0.4, 0.2], atol=0.03)
    camera = np.bincount(np.asarray(scene.camera), minlength=7) / 4096
    np.testing.assert_allclose(camera, [0.4] + [0.1] * 6, atol=0.03)


def test_options_fix_what_they_name_and_nothing_else():
    free, fixed = scenes("val"), scenes("val", num_objects=2, camera=3)
    assert (np.asarray(fixed.active.sum(1)) == 2).all()
    assert (np.asarray(fixed.camera) == 3).all()
    np.testing.assert_array_equal(free.position, fixed.position)
    np.testing.assert_array_equal(free.color, fixed.color)


def test_objects_start_apart():
    scene = scenes("train", 1024)
    apart = scene.position[:, :, None] - scene.position[:, None]
    gap = jnp.sqrt((apart[..., ::2] ** 2).sum(-1)) - (
        scene.radius[:, None] + scene.radius[..., None]
    )
    assert float(jnp.where(jnp.eye(3, dtype=bool)[None], 1.0, gap).min()) > -0.03


def test_each_programme_mostly_does_what_it_is_called():
    for programme, verb in enumerate((REST, LEFT, RIGHT, CLOSER, AWAY, DROPS)):
        shot = many(FULL, 64, programme=programme, num_objects=1)
        assert np.mean(np.asarray(VERBS_OF(shot.trajectory.position))[:, 0] == verb) > 0.95


def test_moving_objects_are_slow_or_fast_and_seldom_between():
    position = whole().trajectory.position
    verb = VERBS_OF(position)
    speed = SPEEDS_OF(position)
    moving = np.asarray((verb >= LEFT) & (verb <= AWAY) & whole().scene.active)
    share = np.bincount(np.asarray(speed)[moving], minlength=3) / moving.sum()
    assert share[0] < 0.05 and share[1] > 0.3 and share[2] > 0.3


@pytest.mark.parametrize(
    ("points", "verb"),
    [
        ([(0, 0.4, 0), (0.1, 0.4, 0.1)], REST),
        ([(1, 0.4, 0), (-1, 0.4, 0.1)], LEFT),
        ([(-1, 0.4, 0), (1, 0.4, 0.1)], RIGHT),
        ([(0, 0.4, -1), (0.1, 0.4, 1)], CLOSER),
        ([(0, 0.4, 1), (0.1, 0.4, -1)], AWAY),
        ([(0, 1.4, 0), (0, 0.4, 0)], DROPS),
        ([(0, 0.4, 0), (1, 0.4, 0), (0, 0.4, 0)], WANDERS),  # There and back is no rest.
        ([(0, 0.4, 0), (0.7, 0.4, 0.7)], WANDERS),
        ([(0, 0.4, 0), (0, 1.4, 0)], REST),  # Rising is not dropping.
    ],
)
def test_verbs_name_the_outcome(points, verb):
    assert np.asarray(w.verb_labels(path(*points), 12.0)).tolist() == [verb] * 3


def test_a_slow_object_moves_in_a_short_window_too():
    slow = path((0.4, 0.4, 0), (-0.4, 0.4, 0))
    assert int(w.verb_labels(slow, 12.0, 11, 22)[0]) == LEFT
    assert int(w.speed_labels(slow, 12.0, 11, 22)[0]) == w.SPEEDS.index("slow")


def test_a_path_is_counted_to_its_last_frame_and_no_further():
    """Both windows have seven frames; only in the second one the object comes back."""
    aside = jnp.zeros(33).at[16].set(0.0445)
    position = jnp.broadcast_to(aside[:, None, None] * jnp.array([[[1.0, 0.0, 1.0]]]), (33, 3, 3))
    assert int(w.verb_labels(position, 12.0, 10, 17)[0]) == REST
    assert int(w.verb_labels(position, 12.0, 11, 18)[0]) == WANDERS


@pytest.mark.parametrize(("speed", "word"), [(0.16, 1), (0.45, 1), (0.53, 2), (0.14, 0), (0.5, 0)])
def test_a_steady_speed_has_one_word_in_windows_of_any_length(speed, word):
    steady = (jnp.arange(33) / 12 * speed)[:, None, None] * jnp.eye(3)[None, :1]
    position = jnp.broadcast_to(steady, (33, 3, 3))
    words = [int(w.speed_labels(position, 12.0, 4, stop)[0]) for stop in (6, 7, 12, 33)]
    assert words == [word] * 4


def test_labels_of_a_window_depend_on_its_frames_alone():
    position = whole().trajectory.position[:64]
    for labels in (w.verb_labels, w.speed_labels):
        windows = jax.jit(jax.vmap(lambda x, f=labels: f(x, 12.0, jnp.int32(9), jnp.int32(21))))
        cut = jax.jit(jax.vmap(lambda x, f=labels: f(x[9:21], 12.0)))
        np.testing.assert_array_equal(windows(position), cut(position))


def test_speeds_between_the_words_have_none():
    speed = jnp.array([0.0, 0.1, 0.3, 0.49, 0.6])
    position = (jnp.arange(33) / 12)[:, None, None] * speed[None, :, None] * jnp.eye(3)[None, :1]
    assert np.asarray(w.speed_labels(position, 12.0)).tolist() == [0, 0, 1, 0, 2]
