"""Actions have exact effects: pushed objects move, stopped ones do not, turns move the camera."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.world import actions as a
from jvdm.world.captions import caption_text
from jvdm.world.scene import ARENA, RADII, SHAPES, World

WORLD = World(height=32, width=32, num_frames=9, fps=6.0, substeps=12, supersample=1)


@pytest.fixture(scope="module")
def played():
    """Clips of one action that is held, by its name; 16 scenes each."""
    indices = jnp.arange(16)

    @jax.jit
    def made(actions):
        return a.play(WORLD, "val", indices, jnp.broadcast_to(actions, (16, 9)))

    return {name: made(jnp.full(9, a.index_of(name))) for name in a.ACTIONS} | {
        "push, then stop": made(
            jnp.repeat(jnp.array([2, 5, 2]), jnp.array([3, 4, 2]), total_repeat_length=9)
        )
    }


def moved(clip) -> Any:
    """How far object 0 moves in x and z from frame to frame."""
    return np.diff(np.asarray(clip.facts.position[:, :, 0, ::2]), axis=1)


@pytest.mark.parametrize(
    ("name", "axis", "sign"),
    [("push left", 0, -1), ("push right", 0, 1), ("push closer", 1, 1), ("push away", 1, -1)],
)
def test_a_pushed_ball_moves_by_the_same_every_frame_until_a_wall(played, name, axis, sign):
    clip = played[name]
    balls = np.asarray(clip.facts.shape[:, 0] == SHAPES.index("ball"))
    steps, free = moved(clip)[balls], free_steps(clip, axis, sign)[balls]
    assert free.sum() >= 8
    np.testing.assert_allclose(steps[..., axis][free], sign * a.PUSH / WORLD.fps, rtol=1e-3)
    np.testing.assert_allclose(steps[..., 1 - axis][free], 0, atol=1e-5)


def test_boxes_are_pushed_against_friction(played):
    clip = played["push left"]
    boxes = np.asarray(clip.facts.shape[:, 0] != SHAPES.index("ball"))
    steps, free = moved(clip)[boxes][..., 0], free_steps(clip, 0, -1)[boxes]
    assert free.sum() >= 8
    share = -steps[free] / (a.PUSH / WORLD.fps)
    assert (share > 0.95).all() and (share < 0.99).all()  # .35 / s for a sixth of a second


def free_steps(clip, axis, sign):
    """Which steps `[B, T - 1]` end before the wall."""
    start = np.asarray(clip.facts.position[:, 0, 0, 2 * axis])
    radius = np.asarray(RADII)[np.asarray(clip.facts.size[:, 0])]
    room = ARENA[axis] - radius - sign * start
    return a.PUSH / WORLD.fps * np.arange(1, 9)[None] < room[:, None]


def test_without_an_action_and_with_turns_nothing_moves(played):
    for name in ("none", "stop", "turn left", "turn right"):
        np.testing.assert_allclose(moved(played[name]), 0, atol=1e-5)


def test_a_stop_takes_effect_at_once_and_until_the_next_push(played):
    steps = moved(played["push, then stop"])[..., 0]
    ball = np.asarray(played["push, then stop"].facts.shape[:, 0] == SHAPES.index("ball"))
    np.testing.assert_allclose(steps[:, 3:7], 0, atol=1e-5)
    assert (np.abs(steps[ball][:, :2]) > 0.9 * a.PUSH / WORLD.fps).all()


def test_a_turn_is_the_ring_of_the_camera(played):
    rest, turned = played["none"], played["turn right"]
    assert np.abs(np.asarray(turned.video[:, 0] - rest.video[:, 0])).max() < 1e-6
    angles = a.camera_angles(jnp.full(9, a.index_of("turn right")), WORLD.fps)
    np.testing.assert_allclose(angles, np.arange(9) * a.TURN / WORLD.fps, rtol=1e-6)
    np.testing.assert_allclose(
        a.camera_angles(jnp.full(9, a.index_of("turn left")), WORLD.fps), -angles, rtol=1e-6
    )
    before = np.asarray(rest.video)
    assert np.abs(np.asarray(turned.video)[:, 4:] - before[:, 4:]).max((1, 2, 3, 4)).min() > 0.2


def test_the_motion_is_read_from_the_frames(played):
    """To the left in the world is to the left in the picture, closer is lower."""
    for name, axis, sign in (("push left", 0, -1), ("push right", 0, 1), ("push closer", 1, 1)):
        clip = played[name]
        seen = jax.jit(jax.vmap(a.places))(clip.video, clip.facts.color[:, 0])
        change = np.asarray(seen[:, 2] - seen[:, 0])[:, axis]
        free = free_steps(clip, {"push closer": 1}.get(name, 0), sign)[:, 1]
        assert free.sum() >= 8 and (sign * change[free] > 0.01).all(), name
    nothing = a.places(jnp.ones((2, 4, 4, 3)), 0)
    assert np.isnan(nothing).all()


def test_captions_say_what_is_there_and_that_it_rests(played):
    for name in ("push left", "turn left"):
        texts = [caption_text(tokens) for tokens in np.asarray(played[name].tokens)]
        assert not any(
            word in text
            for text in texts
            for word in (" left", " right", " closer", " away", "pan")
        )


def test_latent_actions_are_held_for_the_frames_of_a_latent():
    """Latent frames 0, 1, 2 are the frames 0, 1 to 4 and 5 to 8."""
    held = a.of_frames(jnp.array([7, 1, 2]), 9)
    np.testing.assert_array_equal(held, [1, 1, 1, 1, 2, 2, 2, 2, 2])
    np.testing.assert_array_equal(a.of_frames(jnp.array([3, 1, 2]), 3), [1, 2, 2])
    np.testing.assert_array_equal(a.of_frames(jnp.array([3]), 1), [3])


def test_drawn_actions_are_all_there_and_kept_as_often_as_said():
    drawn = np.asarray(a.held_actions(jax.random.key(0), 8000, keep=0.75))
    counts = np.bincount(drawn, minlength=len(a.ACTIONS)) / 8000
    np.testing.assert_allclose(counts, 1 / 8, atol=0.04)  # 2000 draws: 5 standard deviations
    same = np.mean(drawn[1:] == drawn[:-1])
    np.testing.assert_allclose(same, 0.75 + 0.25 / 8, atol=0.03)


def test_an_unknown_action_is_refused():
    with pytest.raises(ConfigError, match="the action 'jump'.*there are none, push left"):
        a.index_of("jump")
