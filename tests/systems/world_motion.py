"""How much things still move in the world itself, which streams of its clips go on from.

python -m tests.systems.world_motion

Prints `motion` as `jvdm evaluate --streams` has it, the change from frame to frame in 33 frames
over that in the first 33, of true films of what its two prompts tell: a ball that rolls to the
left, a box that slides to the right (64 x 64 pixels, scenes of split `test`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Int
from jvdm.evaluation.temporal import frame_change
from jvdm.world.clips import shoot
from jvdm.world.render import Shot, render
from jvdm.world.scene import PROGRAMMES, SHAPES, World, scene_key

CLIP, STARTS = 33, (0, 33, 64, 234, 468)  # the clip of `tiny_t2v`, and where its like are cut out
WORLD = World(height=64, width=64, num_frames=STARTS[-1] + CLIP, supersample=1)
TOLD = {"ball": "left", "box": "right"}


@jax.jit
def changes(scenes: Int[Array, " N"], programme: Int[Array, ""]) -> tuple[Array, Array]:
    """Returns `[N, starts]`, the change from frame to frame, and the shape of the object."""

    def one(index: Array) -> tuple[Array, Array]:
        key = scene_key("test", index)
        shot = shoot(key, WORLD, num_objects=1, camera=0, programme=programme)

        def film(start: int) -> Array:
            moving = (shot.trajectory, shot.camera)
            cut = jax.tree.map(lambda leaf: leaf[start : start + CLIP], moving)
            return render(Shot(shot.scene, *cut), WORLD)

        found = jnp.stack([film(start) for start in STARTS])
        return frame_change(found), shot.scene.shape[0]

    return jax.lax.map(one, scenes)


def main(scenes: int = 48) -> None:
    """Prints a row for each prompt."""
    print("frames from  " + "  ".join(f"{start:>5}" for start in STARTS))
    for shape, way in TOLD.items():
        found, shapes = changes(jnp.arange(scenes), jnp.int32(PROGRAMMES.index(way)))
        kept = np.asarray(found)[np.asarray(shapes) == SHAPES.index(shape)]
        motion = (kept / np.maximum(kept[:, :1], 1e-4)).mean(0)
        row = "  ".join(f"{value:5.2f}" for value in motion)
        print(f"{shape:<11}  {row}  ({len(kept)} films)")


if __name__ == "__main__":
    main()
