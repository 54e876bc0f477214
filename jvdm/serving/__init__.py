"""jvdm for several people at once: a queue before one device, an HTTP service and a demo."""

from jvdm.serving.jobs import Busy, Cancelled, Closing, Jobs, UnknownJob
from jvdm.serving.limits import Limits, TooMuch
from jvdm.serving.tasks import Status, Task

__all__ = [
    "Busy",
    "Cancelled",
    "Closing",
    "Jobs",
    "Limits",
    "Status",
    "Task",
    "TooMuch",
    "UnknownJob",
]
