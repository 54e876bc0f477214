"""Measures of clips by hues and pixels, in one pass on the device."""

import jax.numpy as jnp

from jvdm import fidelity
from jvdm.arrays import Array, Bool, Frames, Int
from jvdm.evaluation import objects, temporal
from jvdm.evaluation.estimates import Measure
from jvdm.evaluation.hue import Tracks, track
from jvdm.world.phrases import RELATIONS
from jvdm.world.scene import Facts

_STILL_PSNR = 40.0  # dB; about what the autoencoder loses


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
    placed, told = objects.relation_right(tracks, facts, relation)
    aside = relation < RELATIONS.index("behind")
    measures = {
        "colour set": everywhere(objects.color_set_right(tracks, facts.active)),
        "count": everywhere(objects.count_right(tracks, facts.active)),
        "permanence": everywhere(kept.kept),
        "fused": everywhere(objects.fused(tracks)),
        "lost": everywhere(kept.lost),
        "created": everywhere(kept.created),
        "jumped": everywhere(kept.jumped),
        "resized": everywhere(kept.resized),
        "direction": Measure(*objects.direction_right(tracks, facts)),
        "relation": Measure(placed, told),
        "left or right": Measure(placed, told & aside),
        "behind or in front": Measure(placed, told & ~aside),
    }
    return measures | _motion(frames, tracks, facts, fps)


def _motion(frames: Frames, tracks: Tracks, facts: Facts, fps: float) -> dict[str, Measure]:
    fall = objects.gravity_fit(tracks, facts, fps)
    return {
        "gravity": Measure(fall.ratio, fall.valid),
        "gravity residual": Measure(fall.residual, fall.valid),
        "speed, cells per frame": Measure(objects.mean_speed(tracks), facts.active),
        "frame change": everywhere(temporal.frame_change(frames)),
        "jitter": everywhere(temporal.jitter(frames)),
        "seam index": everywhere(temporal.seam_index(frames)),
    }


def everywhere(value: Array) -> Measure:
    """Returns a measure that counts every clip."""
    return Measure(value, jnp.ones(value.shape, bool))


def measure_reconstruction(frames: Frames, truth: Frames) -> dict[str, Measure]:
    """How well the autoencoder keeps true clips; square errors, to be pooled over clips."""
    error = ((frames - truth) ** 2).mean(-1)
    seen = fidelity.object_pixels(truth).any((1, 2, 3))
    return {
        "square error": everywhere(error.mean((1, 2, 3))),
        "object square error": Measure(fidelity.object_square_error(frames, truth), seen),
        "first frame square error": everywhere(error[:, 0].mean((1, 2))),
        "SSIM": everywhere(fidelity.ssim(frames, truth)),
    }


def measure_known_frames(
    frames: Frames,
    truth: Frames,
    reconstruction: Frames,
    known: Bool[Array, " T"],
    judged: Bool[Array, " T"],
    copies: Int[Array, " N"],
) -> dict[str, Measure]:
    """Clips that were generated around known frames, against what truly happened.

    Args:
        frames: Generated clips.
        truth: The true clips whose frames were known.
        reconstruction: The true clips, coded and decoded.
        known: Frames that were given.
        judged: Frames that are compared.
        copies: Known frames; the best still of one of them is the baseline.

    Returns:
        PSNR in dB of the judged frames, counted on clips in which they differ from the
        baseline by more than 40 dB (something moves), and of the known frames.
    """
    model, coded = (fidelity.psnr(clips, truth, judged) for clips in (frames, reconstruction))
    stills = [jnp.broadcast_to(truth[:, frame][:, None], truth.shape) for frame in copies]
    copy = jnp.stack([fidelity.psnr(still, truth, judged) for still in stills]).max(0)
    moving = copy < _STILL_PSNR
    return {
        "model": Measure(model, moving),
        "copy": Measure(copy, moving),
        "gain": Measure(model - copy, moving),
        "reconstruction": Measure(coded, moving),
        "kept": everywhere(fidelity.psnr(frames, truth, known)),
        "kept, reconstruction": everywhere(fidelity.psnr(reconstruction, truth, known)),
    }
