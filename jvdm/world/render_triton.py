"""Frames of the world by one kernel: a tile casts rays only at objects that may be seen in it.

XLA's form casts every ray at every object: 64 clips of 33 frames of 128 x 128 take 6.83 ms, these
1.91 (H200). Tiles of 16 x 32 and 8 x 64 pixels take 1.93 and 1.98, one warp instead of four 2.61.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jvdm.arrays import Array, Bool, Float
from jvdm.world.render import REACH, TILE, Instant, cast, light, rays, slopes, tones
from jvdm.world.scene import MAX_OBJECTS, Scene, World

_WARPS = 4


def draw_tiles(
    moments: Instant, scene: Scene, world: World, interpret: bool = False
) -> Float[Array, "T H W 3"]:
    """Draws frames, supersampled.

    Args:
        moments: Cameras and poses of the frames.
        scene: What is to be seen.
        world: Size, of multiples of `TILE`, and supersampling.
        interpret: Whether the program is interpreted, on any device, slowly.
    """
    frames, s = moments.camera.focal.shape[0], world.supersample
    size = s * world.height, s * world.width
    things = (scene.active.astype(jnp.int32), scene.shape, scene.radius, tones(scene))

    def render(moment: Any, things: Any, *channels: Any) -> None:
        now, (active, shape, radius, color) = jax.tree.map(_scalars, (moment, things))
        there = scene._replace(active=[x != 0 for x in active], shape=shape, radius=radius)
        top, left = s * TILE * pl.program_id(1), s * TILE * pl.program_id(2)
        tile = top, left, s * TILE
        seen = [may_hit(now, there, k, size, tile) for k in range(MAX_OBJECTS)]
        pixels = [jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1)]
        rows, columns = top + s * pixels[0], left + s * pixels[1]

        def change(k: int, closer: Any, found: Any) -> Any:
            return jax.lax.cond(seen[k], closer, lambda found: found, found)

        def ray(down: Array, right: Array, sums: list[Array]) -> list[Array]:
            direction = rays(now.camera, size, rows + down, columns + right)
            hit = cast(now, there, color, direction, change)
            return [a + b for a, b in zip(sums, light(hit, now, there), strict=True)]

        def line(down: Array, sums: list[Array]) -> list[Array]:
            return jax.lax.fori_loop(0, s, functools.partial(ray, down), sums)

        sums = jax.lax.fori_loop(0, s, line, [jnp.zeros((TILE, TILE))] * 3)
        for channel, total in zip(channels, sums, strict=True):
            channel[...] = total / (s * s)

    def of_frame(leaf: Array) -> pl.BlockSpec:
        shape = leaf.shape[1:]
        return pl.BlockSpec((None, *shape), lambda t, i, j: (t, *(0,) * len(shape)))

    drawn = pl.pallas_call(
        render,
        out_shape=[jax.ShapeDtypeStruct((frames, world.height, world.width), jnp.float32)] * 3,
        grid=(frames, world.height // TILE, world.width // TILE),
        in_specs=(jax.tree.map(of_frame, moments), (pl.BlockSpec(),) * len(things)),
        out_specs=[pl.BlockSpec((None, TILE, TILE), lambda t, i, j: (t, i, j))] * 3,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="render",
    )(moments, things)
    return jnp.stack(drawn, -1)


def may_hit(
    now: Instant, scene: Scene, k: int, size: tuple[int, int], tile: tuple[Any, Any, int]
) -> Bool[Array, ""]:
    """Returns whether rays of a tile may hit object `k`: whether its sphere is in their pyramid.

    Args:
        now: Camera and poses.
        scene: Of which `active` and `radius` are read.
        k: Slot of the object.
        size: Height and width of the image.
        tile: First row, first column and side.
    """
    camera, (top, left, side) = now.camera, tile
    offset = [now.position[k][i] - camera.eye[i] for i in range(3)]
    right, down, forward = (sum(camera.basis[j][i] * offset[i] for i in range(3)) for j in range(3))
    reach = 1.01 * REACH * scene.radius[k]  # sums are rounded
    edges = (slopes(camera, size, top + at - 0.5, left + at - 0.5) for at in (0, side))

    def inside(gap: Array, edge: Array) -> Array:
        """Whether the sphere reaches over a plane that is `edge` to the side, one forwards."""
        return gap >= -reach * jnp.sqrt(1.0 + edge * edge)

    (low_y, low_x), (high_y, high_x) = edges
    return (
        scene.active[k]
        & inside(down - low_y * forward, low_y)
        & inside(right - low_x * forward, low_x)
        & inside(high_y * forward - down, high_y)
        & inside(high_x * forward - right, high_x)
    )


def _scalars(ref: Any, *at: int) -> Any:
    """Returns an array in nested lists: sides of Triton's arrays are powers of two."""
    if len(at) == len(ref.shape):
        return ref[at]
    return [_scalars(ref, *at, i) for i in range(ref.shape[len(at)])]
