"""All measures of generated clips against their captions, in one pass on the device."""

import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Frames, Int, PyTree
from jvdm.data.world import Facts
from jvdm.metrics import objects, temporal
from jvdm.metrics.estimates import Measure
from jvdm.metrics.hue import Tracks, track
from jvdm.models.reader import Reader, Reading, attributes_right, shrink


def measure_clips(
    frames: Frames, facts: Facts, relation: Int[Array, " B"], fps: float
) -> dict[str, Measure]:
    """What the hue reader and the pixels say.

    Args:
        frames: Clips in 0..1.
        facts: What the captions tell of them.
        relation: Relation of object 0 to object 1 that was told, or -1.
        fps: Frames per second.
    """
    tracks = track(frames, facts.color, facts.active)
    kept = objects.permanence(tracks, facts.active, fps)
    measures = {
        "colour set": _all(objects.color_set_right(tracks, facts.active)),
        "count": _all(objects.count_right(tracks, facts.active)),
        "permanence": _all(kept.kept),
        "lost": _all(kept.lost),
        "created": _all(kept.created),
        "jumped": _all(kept.jumped),
        "resized": _all(kept.resized),
        "direction": Measure(*objects.direction_right(tracks, facts)),
        "relation": Measure(*objects.relation_right(tracks, facts, relation)),
    }
    return measures | _motion(frames, tracks, facts, fps)


def _motion(frames: Frames, tracks: Tracks, facts: Facts, fps: float) -> dict[str, Measure]:
    fall = objects.gravity_fit(tracks, facts, fps)
    return {
        "gravity": Measure(fall.ratio, fall.valid),
        "gravity residual": Measure(fall.residual, fall.valid),
        "speed, cells per frame": Measure(objects.mean_speed(tracks), facts.active),
        "frame change": _all(temporal.frame_change(frames)),
        "jitter": _all(temporal.jitter(frames)),
        "seam index": _all(temporal.seam_index(frames)),
    }


def read(reader: Reader, params: PyTree, frames: Frames) -> Reading:
    """Lets the trained reader look at clips of any length and size."""
    return reader.bind({"params": params})(shrink(jnp.clip(frames, 0.0, 1.0)))


def measure_reading(reading: Reading, facts: Facts) -> dict[str, Measure]:
    """What the trained reader says; "all" is colours, shapes and sizes of a whole clip."""
    right = {name: Measure(*pair) for name, pair in attributes_right(reading, facts).items()}
    looks = jnp.asarray(right["colors"].value) & _each(right["shape"]) & _each(right["size"])
    return {
        "reader colours": right["colors"],
        "reader shape": right["shape"],
        "reader size": right["size"],
        "reader all": _all(looks),
        "verb": Measure(right["verb"].value[:, 0], facts.active[:, 0]),
        "verbs": _all(_each(right["verb"])),
        "speed word": right["speed"],
        "camera": right["camera"],
    }


def _all(value: Array) -> Measure:
    """Measured on every clip."""
    return Measure(value, jnp.ones(value.shape, bool))


def _each(measure: Measure) -> Bool[Array, " B"]:
    """Right for every counted object of a clip."""
    return jnp.where(measure.counted, measure.value, True).all(-1)
