"""Captions per time segment: a clip is cut at its events, each part is told alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key
from jvdm.keys import named
from jvdm.world.captions import Style, caption_tokens
from jvdm.world.physics import Trajectory
from jvdm.world.scene import REFERENCE_SECONDS, VERBS, Facts, speed_labels, verb_labels

MAX_SEGMENTS = 4
MIN_FRAMES = 4
"""Fewest frames of a segment; also the window in which verbs are compared."""

# Changes of speed in units/s: contact events of at least this strength are told apart.
_IMPULSE = 0.3
_RISE = 0.4
"""Height gained over a clip that counts, the same as for a fall in `verb_labels`."""


class SegmentCaptions(NamedTuple):
    """One caption for each segment, and the segment of each frame.

    Segments that a clip does not have are all padding in `tokens`.
    """

    tokens: Int[Array, "segments L"]
    segment_of_frame: Int[Array, " T"]


def segment_captions(
    key: Key, facts: Facts, impulse: Float[Array, "T K"], fps: float, style: Style = "mixed"
) -> SegmentCaptions:
    """Cuts a clip at its events and draws a caption for each part.

    Args:
        key: Chooses the wording.
        facts: What is true of the whole clip.
        impulse: Contact impulses of each object, see `impulses`.
        fps: Frames per second of `facts.position`.
        style: What is said, see `jvdm.world.captions.RULES`.

    Returns:
        Tokens `[MAX_SEGMENTS, MAX_TOKENS]` and int32 `segment_of_frame`, which
        starts at 0 and never falls; every segment has `MIN_FRAMES` or more
        frames unless the clip is shorter.
    """
    num_frames = facts.position.shape[0]
    starts = segment_starts(facts, impulse, fps)
    stops = jnp.append(starts[1:], num_frames)
    exists = starts < num_frames
    # The window of a missing segment must not be empty; its caption is thrown away.
    starts = jnp.minimum(starts, max(num_frames - MIN_FRAMES, 0))

    def one(index, start, stop):
        part = window_facts(facts, fps, start, stop)
        return caption_tokens(jax.random.fold_in(named(key, "segment"), index), part, style)

    tokens = jax.vmap(one)(jnp.arange(MAX_SEGMENTS), starts, stops)
    inner = jnp.where(exists, starts, num_frames)[1:]
    segment = jnp.sum(jnp.arange(num_frames)[:, None] >= inner[None], axis=1)
    return SegmentCaptions(jnp.where(exists[:, None], tokens, 0), segment.astype(jnp.int32))


def impulses(trajectory: Trajectory) -> Float[Array, "T K"]:
    """Sums the contact impulses of each object between a frame and the next, in units/s."""
    pairs = jnp.abs(trajectory.pair_impulse).sum(-1)
    return jnp.abs(trajectory.ground_impulse) + jnp.abs(trajectory.wall_impulse) + pairs


def segment_starts(
    facts: Facts, impulse: Float[Array, "T K"], fps: float
) -> Int[Array, " segments"]:
    """Finds the first frame of each segment, ascending; missing ones are `T`.

    The strongest events win: contacts, by the change of speed, and changes of a
    verb between the `MIN_FRAMES` before and after, by the change of mean velocity.
    """
    num_frames = facts.position.shape[0]
    frame = jnp.arange(num_frames)
    strength = _event_strength(facts, impulse, fps)
    room = (frame >= MIN_FRAMES) & (frame <= num_frames - MIN_FRAMES)
    strength = jnp.where(room, strength, 0.0)
    starts = [jnp.int32(0)]
    for _ in range(MAX_SEGMENTS - 1):
        best = jnp.argmax(strength)
        starts.append(jnp.where(strength[best] > 0, best, num_frames).astype(jnp.int32))
        strength = jnp.where(jnp.abs(frame - best) < MIN_FRAMES, 0.0, strength)
    return jnp.sort(jnp.stack(starts))


def window_facts(
    facts: Facts, fps: float, start: int | Int[Array, ""], stop: int | Int[Array, ""]
) -> Facts:
    """States what is true in the frames `start <= t < stop` alone.

    Positions and velocities keep their length: frames outside the window repeat
    its first or last frame. `verb` is also "drops" for an object that leaves the
    ground after an impact; its caption then says that it bounces.
    """
    start, stop = jnp.asarray(start), jnp.asarray(stop)
    verb = _window_verbs(facts.position, fps, start, stop)
    speed = speed_labels(facts.position, fps, start, stop)
    frames = jnp.clip(jnp.arange(facts.position.shape[0]), start, stop - 1)
    return facts._replace(
        verb=jnp.where(facts.active, verb, 0),
        speed=jnp.where(facts.active, speed, 0),
        position=facts.position[frames],
        velocity=facts.velocity[frames],
    )


def _window_verbs(
    position: Float[Array, "T K 3"], fps: float, start: Int[Array, ""], stop: Int[Array, ""]
) -> Int[Array, " K"]:
    """Verbs of a window; a part of a clip may show the rise after an impact alone."""
    verb = verb_labels(position, fps, start, stop)
    frames = jnp.clip(jnp.arange(position.shape[0]), start, stop - 1)
    height = position[frames, :, 1]
    rise = jnp.max(height - jax.lax.cummin(height, axis=0), axis=0)
    scale = jnp.minimum(1.0, (stop - start) / fps / REFERENCE_SECONDS)
    return jnp.where(rise > _RISE * scale, VERBS.index("drops"), verb)


def _event_strength(facts: Facts, impulse: Float[Array, "T K"], fps: float) -> Float[Array, " T"]:
    """Rates a cut before each frame; 0 where nothing happens."""
    place = facts.position
    num_frames = place.shape[0]

    def change(frame):
        before, after = jnp.maximum(frame - MIN_FRAMES, 0), jnp.minimum(frame, num_frames - 1)
        end = jnp.minimum(frame + MIN_FRAMES, num_frames)
        verbs = [_window_verbs(place, fps, *window) for window in ((before, frame), (after, end))]
        move = place[end - 1] - place[frame] - (place[frame - 1] - place[before])
        turn = jnp.linalg.norm(move, axis=-1) * fps / (MIN_FRAMES - 1)
        return jnp.where(verbs[0] != verbs[1], turn, 0.0)

    frames = jnp.arange(1, num_frames)
    # Impulses belong to the step after a frame, so a contact ends at the next frame.
    contact = jnp.where(impulse[:-1] > _IMPULSE, impulse[:-1], 0.0)
    event = jnp.where(facts.active[None], jnp.maximum(contact, jax.vmap(change)(frames)), 0.0)
    return jnp.concatenate([jnp.zeros(1), jnp.max(event, axis=1)])
