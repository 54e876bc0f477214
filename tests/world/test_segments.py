import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.world import segments as s
from jvdm.world.captions import caption_text
from jvdm.world.scene import RADII, VERBS, Facts
from jvdm.world.vocabulary import MAX_TOKENS
from tests.world.grammar import parse
from tests.world.shots import FULL, pick, whole
from tests.world.told import is_true, known

FPS = FULL.fps
COUNT = 256


@functools.cache
def told():
    """Segments of the first clips, and the starts that they were cut at."""

    def one(key, facts, trajectory):
        impulse = s.impulses(trajectory)
        made = s.segment_captions(key, facts, impulse, FPS, "full")
        return made, s.segment_starts(facts, impulse, FPS)

    keys = jax.random.split(jax.random.key(5), COUNT)
    facts, paths = (pick(tree, slice(0, COUNT)) for tree in (known(), whole().trajectory))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys, facts, paths))


window = jax.jit(lambda facts, start, stop: s.window_facts(facts, FPS, start, stop))
starts_of = jax.jit(lambda facts, impulse: s.segment_starts(facts, impulse, FPS))


def test_segments_cover_the_clip_in_order_and_are_long_enough():
    made, _ = told()
    counts = np.zeros(s.MAX_SEGMENTS, int)
    for segment in made.segment_of_frame:
        assert segment[0] == 0 and set(np.diff(segment)) <= {0, 1}
        _, lengths = np.unique(segment, return_counts=True)
        assert lengths.min() >= s.MIN_FRAMES and len(lengths) <= s.MAX_SEGMENTS
        counts[len(lengths) - 1] += 1
    assert counts.min() > 5  # quiet clips are one segment, eventful ones four


def test_a_clip_has_a_caption_for_each_of_its_segments_only():
    made, starts = told()
    assert made.tokens.shape == (COUNT, s.MAX_SEGMENTS, MAX_TOKENS)
    told_ones = (made.tokens > 0).any(-1)
    exists = np.arange(s.MAX_SEGMENTS)[None] <= made.segment_of_frame.max(1)[:, None]
    assert (told_ones == exists).all() and (exists == (starts < FULL.num_frames)).all()


def test_a_caption_is_true_of_its_segment():
    made, _ = told()
    parts, different = 0, 0
    for index in range(0, COUNT, 2):
        whole_clip = pick(known(), index)
        for segment in range(made.segment_of_frame[index].max() + 1):
            frames = np.flatnonzero(made.segment_of_frame[index] == segment)
            facts = window(whole_clip, frames[0], frames[-1] + 1)
            text = caption_text(made.tokens[index, segment])
            assert is_true(parse(made.tokens[index, segment]), jax.tree.map(np.asarray, facts)), (
                text
            )
            parts += 1
            different += bool((facts.verb != whole_clip.verb).any())
    assert different > 0.2 * parts > 20  # not the caption of the clip again


def test_motion_in_a_segment_has_the_direction_that_is_told():
    """Checks the words against plain displacement, not against the verb function."""
    made, _ = told()
    checked = 0
    for index in range(COUNT):
        facts = pick(known(), index)
        for segment in range(made.segment_of_frame[index].max() + 1):
            frames = np.flatnonzero(made.segment_of_frame[index] == segment)
            move = np.asarray(facts.position[frames[-1]] - facts.position[frames[0]])
            for stated in parse(made.tokens[index, segment]).objects:
                assert stated.verb is not None
                (k,) = np.flatnonzero(np.asarray(facts.active & (facts.color == stated.color)))
                expected = {"moves left": -move[k, 0], "moves right": move[k, 0]}
                expected |= {"comes closer": move[k, 2], "moves away": -move[k, 2]}
                if VERBS[stated.verb] in expected:
                    assert expected[VERBS[stated.verb]] > 0
                    checked += 1
                elif VERBS[stated.verb] == "rests":
                    assert np.abs(move[k]).max() < 0.25
    assert checked > 100


def scripted(heights, x=None):
    """One large ball of given heights above the ground."""
    frames = len(heights)
    position = np.zeros((frames, 3, 3), np.float32)
    position[:, 0, 1] = RADII[1] + np.asarray(heights)
    if x is not None:
        position[:, 0, 0] = x
    slots = jnp.zeros(3, jnp.int32)
    velocity = np.diff(position, axis=0, append=position[-1:]) * np.float32(FPS)
    return Facts(
        active=jnp.arange(3) < 1,
        shape=slots,
        size=slots + 1,
        color=jnp.arange(3),
        verb=slots,
        speed=slots,
        camera=jnp.int32(0),
        position=jnp.asarray(position),
        velocity=jnp.asarray(velocity),
    )


def test_a_change_of_direction_is_an_event():
    x = np.concatenate([np.linspace(0, 1, 10), np.linspace(0.9, -0.5, 14)])
    facts = scripted(np.zeros(24), x)
    starts = np.asarray(starts_of(facts, jnp.zeros((24, 3))))
    assert abs(starts[1] - 10) <= 1
    before, after = window(facts, 0, starts[1]), window(facts, starts[1], 24)
    assert VERBS[before.verb[0]] == "moves right" and VERBS[after.verb[0]] == "moves left"


def test_a_contact_is_an_event_where_it_happens_unless_too_weak_or_too_early():
    facts = scripted(np.zeros(20))
    quiet = jnp.zeros((20, 3))
    for frame, strength, expected in ((9, 1.0, 10), (9, 0.2, 20), (1, 1.0, 20), (17, 1.0, 20)):
        starts = starts_of(facts, quiet.at[frame, 0].set(strength))
        assert starts.tolist() == [0, expected, 20, 20]
    unseen = starts_of(facts, quiet.at[9, 2].set(9.0))  # an inactive slot
    assert unseen.tolist() == [0, 20, 20, 20]


def test_the_strongest_events_win():
    facts = scripted(np.zeros(33))
    impulse = jnp.zeros((33, 3))
    for frame, strength in ((5, 1.0), (7, 2.0), (13, 0.5), (19, 3.0), (26, 1.5)):
        impulse = impulse.at[frame, 0].set(strength)
    starts = starts_of(facts, impulse)
    assert starts.tolist() == [0, 8, 20, 27]


def test_a_rise_after_an_impact_is_told_as_a_bounce():
    heights = [1.2, 0.9, 0.5, 0.0, 0.4, 0.7, 0.9, 1.0]
    facts = scripted(heights)
    impulse = jnp.zeros((8, 3)).at[3, 0].set(8.0)
    draw = jax.jit(jax.vmap(lambda key: s.segment_captions(key, facts, impulse, FPS, "full")))
    made = draw(jax.random.split(jax.random.key(0), 40))
    assert made.segment_of_frame[0].tolist() == [0] * 4 + [1] * 4
    for tokens in np.asarray(made.tokens):
        first, second = caption_text(tokens[0]), caption_text(tokens[1])
        assert any(word in first for word in ("drops", "falls", "plunges", "plummets"))
        assert "bounces" in second or "rebounds" in second


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_a_short_clip_is_one_segment(frames):
    facts = scripted(np.zeros(frames))
    impulse = jnp.full((frames, 3), 5.0)
    draw = jax.jit(lambda key: s.segment_captions(key, facts, impulse, FPS))
    made = draw(jax.random.key(0))
    assert made.segment_of_frame.tolist() == [0] * frames
    assert made.tokens[0].any() and not made.tokens[1:].any()


def test_a_window_is_all_of_a_clip_or_a_part():
    facts = pick(known(), 3)
    same = window(facts, 0, FULL.num_frames)
    assert (same.position == facts.position).all() and (same.verb == facts.verb).all()
    part = window(facts, 8, 20)
    assert (part.position[8:20] == facts.position[8:20]).all()
    assert (part.position[0] == facts.position[8]).all()
    assert (part.position[-1] == facts.position[19]).all()
