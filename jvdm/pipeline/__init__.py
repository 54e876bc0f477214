"""From a request to a video: a loaded model and the stages of a run."""

from jvdm.pipeline.pictures import Pictures
from jvdm.pipeline.pipeline import Pipeline, load
from jvdm.pipeline.request import Job, Request

__all__ = ["Job", "Pictures", "Pipeline", "Request", "load"]
