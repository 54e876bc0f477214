"""From a request to a video: a loaded system and the stages of a run."""

from jvdm.pipeline.pipeline import Pipeline, Run, load
from jvdm.pipeline.request import Given, Job, Request
from jvdm.pipeline.strengths import with_strengths

__all__ = ["Given", "Job", "Pipeline", "Request", "Run", "load", "with_strengths"]
