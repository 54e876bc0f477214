"""How generated video is measured: readers, and numbers made from what they read."""

from jvdm.metrics import defects
from jvdm.metrics.estimates import Estimate, Measure, estimate, ratio
from jvdm.metrics.fidelity import object_psnr, psnr, ssim
from jvdm.metrics.frechet import frechet_distance
from jvdm.metrics.hue import Tracks, track
from jvdm.metrics.objects import count_right, gravity_fit, permanence
from jvdm.metrics.readers import load_reader, read

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
