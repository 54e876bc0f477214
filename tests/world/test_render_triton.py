"""Frames drawn by the kernel, interpreted, against XLA's form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.world import render as r
from jvdm.world.render_triton import draw_tiles, may_hit
from jvdm.world.scene import CAMERAS, SHAPES, World
from pallas_kernels.attention import planned
from tests.pallas_kernels.hopper import compiled_for_h200
from tests.world.shots import many, pick

WORLD = World(height=32, width=48, num_frames=3)
KINDS = len(CAMERAS)


@functools.cache
def shots():
    """A shot for each camera, and one of large objects behind one another and half in the frame."""
    made = many(WORLD, KINDS + 1)
    scene, course = made.scene, made.trajectory
    shapes = (jnp.arange(KINDS + 1)[:, None] + jnp.arange(3)[None]) % len(SHAPES)
    radius = scene.radius.at[-1].set(0.8)
    place = course.position.at[-1].set(jnp.array([[-2.8, 0.5, 1.0], [0.3, 1, 1.5], [1.3, 1, -1]]))
    cameras = [r.camera_path(kind, jnp.linspace(0, 1, 3)) for kind in (*range(KINDS), 0)]
    return r.Shot(
        scene._replace(
            shape=shapes, radius=radius, active=scene.active.at[jnp.array([0, 3, -1])].set(True)
        ),
        course._replace(position=place),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *cameras),
    )


def interpreted(moments, scene, world):
    return draw_tiles(moments, scene, world, interpret=True)


def by_kernel(monkeypatch):
    monkeypatch.setattr(r, "kernel_serves", lambda world: True)
    monkeypatch.setattr("jvdm.world.render_triton.draw_tiles", interpreted)


def test_frames_are_those_of_xla(monkeypatch):
    def draw(shots):
        return jax.vmap(lambda shot: r.render(shot, WORLD, jnp.array([0, 2])))(shots)

    plain = np.asarray(jax.jit(draw)(shots()))
    by_kernel(monkeypatch)
    ours = np.asarray(jax.jit(lambda shots: draw(shots))(shots()))
    error = np.abs(ours - plain)  # up to 6e-5 where rays graze a surface
    assert (error > 1e-5).mean() < 1e-3 and error.max() < 1e-3
    assert np.ptp(plain, axis=(1, 2, 3)).min() > 0.2


def test_no_object_is_cut_and_few_tiles_look_for_one_in_vain():
    shot = shots()
    size, side = (2 * WORLD.height, 2 * WORLD.width), 8

    def of_frame(now, scene):
        seg = r.shade_buffers(now, scene, size).seg
        tiles = seg.reshape(size[0] // side, side, size[1] // side, side)
        return [((tiles == k + 1).any((1, 3)), flags(now, scene, k)) for k in range(3)]

    def flags(now, scene, k):
        top, left = (side * jnp.arange(n // side) for n in size)
        one = lambda top, left: may_hit(now, scene, k, size, (top, left, side))  # noqa: E731
        return jax.vmap(lambda top: jax.vmap(lambda left: one(top, left))(left))(top)

    @jax.jit
    def compare(shots):
        of_shot = lambda shot: jax.vmap(lambda now: of_frame(now, shot.scene))(r.instants(shot))  # noqa: E731
        return jax.vmap(of_shot)(shots)

    there, flagged = (np.stack(x) for x in zip(*compare(shot), strict=True))
    assert there.any((1, 2, 3, 4)).all() and not (there & ~flagged).any()
    assert flagged.sum() < 2.5 * there.sum()


def test_gradients_are_those_of_xla(monkeypatch):
    shot = pick(shots(), 0)

    def brightness(position):
        course = shot.trajectory._replace(position=position)
        return r.render(shot._replace(trajectory=course), WORLD).sum()

    plain = jax.jit(jax.grad(brightness))(shot.trajectory.position)
    by_kernel(monkeypatch)
    ours = jax.jit(jax.grad(lambda position: brightness(position)))(shot.trajectory.position)
    np.testing.assert_array_equal(ours, plain)


def test_the_kernel_draws_on_one_hopper_gpu_what_its_tiles_divide(monkeypatch):
    assert jax.default_backend() == "gpu" or not r.kernel_serves(WORLD)
    monkeypatch.setattr(planned, "backend", lambda: "gpu")
    monkeypatch.setattr(planned, "capability", lambda: "9.0")
    assert r.kernel_serves(WORLD)
    assert not r.kernel_serves(dataclasses.replace(WORLD, width=40))
    assert not r.kernel_serves(dataclasses.replace(WORLD, height=40))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        assert not r.kernel_serves(WORLD)
    monkeypatch.setattr(planned, "capability", lambda: "8.0")
    assert not r.kernel_serves(WORLD)


@pytest.mark.slow
def test_the_kernel_compiles_for_an_h200(tmp_path, monkeypatch):
    def draw(shots):
        return jax.vmap(lambda shot: draw_tiles(r.instants(shot), shot.scene, World()))(shots)

    compiled_for_h200(draw, (shots(),), tmp_path, monkeypatch)
