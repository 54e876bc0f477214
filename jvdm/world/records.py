"""The procedural world as a list on the host: the clip at an index, with chosen ground truth.

This is the one place where a clip of the world becomes host arrays. What the
`tensorflow-datasets` builder stores and what the grain pipeline renders on the
fly both come from here, so they are the same arrays.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Key
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.world import ground_truth
from jvdm.world.captions import Style, caption_text, caption_tokens
from jvdm.world.clips import facts, shoot
from jvdm.world.render import Shot, render
from jvdm.world.scene import World, scene_key


def _geometry(part: str, dtype: Any = None) -> Callable:
    def read(shot: Shot, world: World) -> Array:
        value = getattr(ground_truth.geometry(shot, world), part)
        return value if dtype is None else value.astype(dtype)

    return read


def _edges(shot: Shot, world: World) -> Array:
    return ground_truth.edges(ground_truth.geometry(shot, world))


TRUTHS: dict[str, Callable[[Shot, World], Any]] = {
    "objects": lambda shot, world: facts(shot.scene, shot.trajectory, world)._asdict(),
    "depth": _geometry("depth"),
    "segmentation": _geometry("seg", jnp.int8),
    "normals": _geometry("normal"),
    "edges": _edges,
    "flow": lambda shot, world: ground_truth.flow(shot, world)._asdict(),
    "camera": lambda shot, world: ground_truth.camera_matrices(shot.camera, world)._asdict(),
    "amodal": ground_truth.amodal_masks,
}
"""Ground truth by name; `jvdm.world.ground_truth` says what each is."""


@dataclasses.dataclass(frozen=True)
class WorldSource:
    """Clips `start` to `stop` of a split, rendered when they are asked for.

    Equal settings give equal arrays for an index, whatever was asked before.

    Raises:
        ConfigError: If the range is empty or a ground truth is unknown.
    """

    world: World
    split: str = "train"
    start: int = 0
    stop: int = 1_000_000
    caption_style: Style = "mixed"
    truths: tuple[str, ...] = ()
    """Names in `TRUTHS` that come with each clip."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ConfigError(f"clips {self.start} to {self.stop}", "the range is empty")
        unknown = sorted(set(self.truths) - TRUTHS.keys())
        if unknown:
            names = ", ".join(TRUTHS)
            raise ConfigError(f"ground truth {', '.join(unknown)} is unknown", f"there is {names}")

    def open(self, workdir: Path | None = None) -> "WorldSource":
        """Returns itself: there is nothing to open."""
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width of every clip."""
        return self.world.num_frames, self.world.height, self.world.width

    def digest(self) -> str:
        """Returns a fingerprint of what the clips are."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `video` uint8 `[T, H, W, 3]`, `tokens` int32, `caption`, `index` and the truths.

        Args:
            index: From 0; the clip's own number, `index` in the result, is `start` more.
        """
        number = range(self.start, self.stop)[index]
        key = scene_key(self.split, number)
        made = jax.device_get(_make(self.world, self.caption_style, self.truths, key))
        caption = caption_text(made["tokens"])
        return {"index": np.int64(number), "caption": caption, **made}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _make(world: World, style: Style, truths: tuple[str, ...], key: Key) -> dict[str, Any]:
    # One clip at a time: a batch may be compiled to other roundings.
    shot = shoot(key, world)
    known = facts(shot.scene, shot.trajectory, world)
    return {
        "video": jnp.round(render(shot, world) * 255).astype(jnp.uint8),
        "tokens": caption_tokens(named(key, "caption"), known, style),
        **{name: TRUTHS[name](shot, world) for name in truths},
    }
