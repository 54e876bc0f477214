"""How generated video is measured: readers, and numbers made from what they read."""

from jvdm.evaluation import defects
from jvdm.evaluation.estimates import Estimate, Measure, estimate, ratio
from jvdm.evaluation.fidelity import object_psnr, psnr, ssim
from jvdm.evaluation.frechet import frechet_distance
from jvdm.evaluation.hue import Tracks, track
from jvdm.evaluation.objects import count_right, gravity_fit, permanence
from jvdm.evaluation.readers import load_reader, read

__all__ = [
    "Estimate",
    "Measure",
    "Tracks",
    "count_right",
    "defects",
    "estimate",
    "frechet_distance",
    "gravity_fit",
    "load_reader",
    "object_psnr",
    "permanence",
    "psnr",
    "ratio",
    "read",
    "ssim",
    "track",
]
