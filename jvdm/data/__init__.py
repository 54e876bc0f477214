"""Clips from outside: TensorFlow Datasets, folders of videos, and batches made on the host."""

from jvdm.data.host import HostSource, HostState
from jvdm.data.video_folder import VideoFolder

__all__ = ["HostSource", "HostState", "VideoFolder"]
