"""What models are trained on: a procedural world with every ground truth, and captions.

The functions `clips.clips`, `render.render` and `tracks.tracks` are reached through
their modules, which have the same names.
"""

from jvdm.world.captions import caption_text, caption_tokens
from jvdm.world.clips import WorldClip, facts, shoot
from jvdm.world.counterfactual import (
    Edit,
    add,
    compare,
    move,
    other_camera,
    recolor,
    remove,
    reshape,
    resimulate,
    resize,
)
from jvdm.world.ground_truth import (
    Flow,
    Surface,
    amodal_masks,
    camera_matrices,
    correspond,
    edges,
    flow,
    geometry,
    visible_fraction,
    warp,
)
from jvdm.world.physics import Trajectory, simulate
from jvdm.world.render import Buffers, Camera, Shot, camera_path, instants, orbit_camera
from jvdm.world.scene import SPLITS, Facts, Scene, World, sample_scene, scene_key
from jvdm.world.segments import SegmentCaptions, segment_captions
from jvdm.world.tracks import Tracks, tracking_video
from jvdm.world.views import motion_blur, render_views, reproject, ring_cameras

__all__ = [
    "SPLITS",
    "Buffers",
    "Camera",
    "Edit",
    "Facts",
    "Flow",
    "Scene",
    "SegmentCaptions",
    "Shot",
    "Surface",
    "Tracks",
    "Trajectory",
    "World",
    "WorldClip",
    "add",
    "amodal_masks",
    "camera_matrices",
    "camera_path",
    "caption_text",
    "caption_tokens",
    "compare",
    "correspond",
    "edges",
    "facts",
    "flow",
    "geometry",
    "instants",
    "motion_blur",
    "move",
    "orbit_camera",
    "other_camera",
    "recolor",
    "remove",
    "render_views",
    "reproject",
    "resimulate",
    "reshape",
    "resize",
    "ring_cameras",
    "sample_scene",
    "scene_key",
    "segment_captions",
    "shoot",
    "simulate",
    "tracking_video",
    "visible_fraction",
    "warp",
]
