"""How generated video is measured: readers, and numbers made from what they read."""

from jvdm.evaluation.estimates import Estimate, Measure, estimate
from jvdm.evaluation.frechet import frechet_distance
from jvdm.evaluation.readers import load_reader, read

__all__ = ["Estimate", "Measure", "estimate", "frechet_distance", "load_reader", "read"]
