import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.world import ground_truth as g
from jvdm.world import tracks as tr
from jvdm.world.render import FAR, Buffers, Shot, render
from jvdm.world.scene import World
from tests.world.shots import SMALL, flops, many, pick, small, small_geometry

FLOW = jax.jit(jax.vmap(lambda shot, buffers: g.flow(shot, SMALL, buffers)))
WARP = jax.jit(jax.vmap(g.warp))
TRACKS = jax.jit(jax.vmap(lambda key, shot: tr.tracks(key, shot, SMALL, 64, 2)))


def truth() -> tuple[Shot, Buffers, g.Flow]:
    return small(), small_geometry(), FLOW(small(), small_geometry())


def at_target(image, uv):
    """Values `[..., H, W]` of the nearest pixels of `image` at `uv`."""
    column = np.clip(np.round(uv[..., 0]), 0, image.shape[-1] - 1).astype(int)
    row = np.clip(np.round(uv[..., 1]), 0, image.shape[-2] - 1).astype(int)
    clip, frame = (np.arange(n) for n in image.shape[:2])
    return image[clip[:, None, None, None], frame[None, :, None, None], row, column]


def mean_square(error, mask):
    return (np.asarray(error) ** 2).mean(-1)[mask].mean()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_warping_by_flow_beats_no_warping(direction):
    _, buffers, flow = truth()
    motion = getattr(flow, direction)
    seen = ~np.asarray(getattr(flow, f"{direction}_occluded"))
    one, two = buffers.rgb[:, :-1], buffers.rgb[:, 1:]
    here, there = (one, two) if direction == "forward" else (two, one)
    warped = jax.vmap(WARP)(there, motion)
    moving = seen & (np.abs(np.asarray(motion)).max(-1) > 0.5)
    assert moving.mean() > 0.1
    assert mean_square(warped - here, moving) < 0.35 * mean_square(there - here, moving)


def test_the_same_object_is_at_the_target_of_flow():
    _, buffers, flow = truth()
    seg, grid = np.asarray(buffers.seg), np.asarray(g.pixel_grid(40, 56))
    found = at_target(seg[:, 1:], grid + np.asarray(flow.forward))
    visible, objects = ~np.asarray(flow.forward_occluded), seg[:, :-1] > 0
    assert (found == seg[:, :-1])[visible].mean() > 0.99
    assert (found == seg[:, :-1])[visible & objects].mean() > 0.93
    inside = (grid + np.asarray(flow.forward) >= 0).all(-1)
    inside &= (grid + np.asarray(flow.forward) <= np.array([55, 39])).all(-1)
    hidden = ~visible & inside
    assert hidden.sum() > 50
    assert (found != seg[:, :-1])[hidden].mean() > 0.5


def test_forward_and_backward_flow_cancel_where_both_are_visible():
    _, buffers, flow = truth()
    back = jax.vmap(WARP)(flow.backward, flow.forward)
    seg = np.asarray(buffers.seg)
    target = np.asarray(g.pixel_grid(40, 56)) + np.asarray(flow.forward)
    inner = ~np.asarray(flow.forward_occluded) & (seg[:, :-1] == at_target(seg[:, 1:], target))
    loop = np.abs(np.asarray(flow.forward + back)).max(-1)
    assert np.percentile(loop[inner], 95) < 0.1


def test_correspondence_with_the_own_frame_is_the_identity():
    shot, buffers, _ = truth()

    def own(one, found):
        surface = g.Surface(found.seg, found.local)
        return jax.vmap(lambda s, now: g.correspond(s, now, one.scene, (40, 56)))(
            surface, g.instants(one)
        )

    seen = jax.jit(jax.vmap(own))(shot, buffers)
    solid = np.asarray(buffers.seg) >= 0
    off = np.abs(np.asarray(seen.uv - g.pixel_grid(40, 56)[None, None]))
    assert off.max() < 1e-2
    depth = np.asarray(buffers.depth)
    np.testing.assert_allclose(np.asarray(seen.z)[solid], depth[solid], rtol=1e-4)
    assert (np.asarray(buffers.depth)[~solid] == FAR).all()
    border = (off == off).all(-1)
    border[:, :, 1:-1, 1:-1] = False
    assert np.asarray(seen.visible)[~border].mean() > 0.999


def test_the_far_side_of_a_ball_is_hidden():
    """Of its surface is seen what faces the camera, whatever the size of the ball."""
    shot = pick(many(SMALL, 16, num_objects=1, programme=0, camera=0), 0)
    shot = shot._replace(scene=shot.scene._replace(shape=jnp.zeros(3, jnp.int32)))
    now = pick(g.instants(shot), 0)
    outward = jax.random.normal(jax.random.key(0), (500, 3))
    outward = outward / jnp.linalg.norm(outward, axis=-1, keepdims=True)
    surface = g.Surface(jnp.ones(500, jnp.int32), outward * shot.scene.radius[0])
    seen = g.correspond(surface, now, shot.scene, (40, 56))
    turned = np.asarray(outward) @ np.asarray(now.rotation[0]).T
    toward = np.asarray(now.camera.eye - now.position[0]) - turned * float(shot.scene.radius[0])
    facing = (turned * toward).sum(-1) / np.linalg.norm(toward, axis=-1)
    visible, inside = np.asarray(seen.visible), (np.asarray(seen.uv) > 0).all(-1)
    assert inside.all() and (np.abs(facing) < 0.2).mean() < 0.25
    np.testing.assert_array_equal(visible[np.abs(facing) > 0.2], facing[np.abs(facing) > 0.2] > 0)


def test_tracks_start_at_pixels_and_show_their_object_when_visible():
    shot, buffers, _ = truth()
    tracks = TRACKS(jax.random.split(jax.random.key(1), 16), shot)
    uv, visible = np.asarray(tracks.uv), np.asarray(tracks.visible)
    np.testing.assert_allclose(uv[:, 2], np.round(uv[:, 2]), atol=1e-2)
    border = ((uv[:, 2] < 0.5) | (uv[:, 2] > np.array([54.5, 38.5]))).any(-1)
    assert visible[:, 2][~border].mean() > 0.99
    column = np.clip(np.round(uv[..., 0]), 0, 55).astype(int)
    row = np.clip(np.round(uv[..., 1]), 0, 39).astype(int)
    clip, frame = np.arange(16)[:, None, None], np.arange(7)[None, :, None]
    shown = np.asarray(buffers.seg)[clip, frame, row, column]
    same = shown == np.asarray(tracks.id)[:, None]
    assert same[visible].mean() > 0.97
    assert (np.asarray(tracks.id) >= 0).all() and (np.asarray(tracks.id) > 0).mean() > 0.2


def test_tracking_video_keeps_the_color_of_a_point():
    shot = pick(small(), 0)
    video, known = jax.jit(tr.tracking_video, static_argnums=1)(shot, SMALL)
    flow = pick(truth()[2], 0)
    warped = np.asarray(WARP(video[1:], flow.forward))
    target = np.asarray(WARP(known[1:, ..., None].astype(jnp.float32), flow.forward))
    inner = np.asarray(known[:-1]) & ~np.asarray(flow.forward_occluded) & (target[..., 0] == 1)
    assert inner.mean() > 0.5
    assert np.percentile(np.abs(warped - np.asarray(video[:-1])).max(-1)[inner], 97) < 0.02


def test_edges_are_outlines_and_creases_of_objects_only():
    buffers = small_geometry()
    found = np.asarray(jax.jit(jax.vmap(g.edges))(buffers))
    seg = np.asarray(buffers.seg)
    across = (seg[..., 1:] != seg[..., :-1]) & ((seg[..., 1:] > 0) | (seg[..., :-1] > 0))
    assert found[..., 1:][across].all()
    touch = np.zeros(seg.shape, bool)
    for axis in (2, 3):
        for shift in (-1, 1):
            touch |= np.roll(seg > 0, shift, axis)
    assert not (found & ~touch & (seg <= 0)).any()
    assert 0.005 < found.mean() < 0.2
    shape = np.asarray(small().scene.shape)[
        np.arange(16)[:, None, None, None], np.maximum(seg, 1) - 1
    ]
    inner = seg > 0
    for axis in (2, 3):
        inner &= (seg == np.roll(seg, 1, axis)) & (seg == np.roll(seg, -1, axis))
    share = [found[inner & (shape == kind)].mean() for kind in range(3)]
    assert share[0] == 0 and share[1] > 0.05  # Balls have no creases, boxes have.


def test_camera_matrices_project_like_the_renderer():
    shot, buffers, _ = truth()
    cameras = g.camera_matrices(shot.camera, SMALL)
    solid = np.asarray(buffers.seg) >= 0
    homogeneous = np.concatenate([np.asarray(buffers.world), np.ones((*solid.shape, 1))], -1)
    to_camera = np.linalg.inv(np.asarray(cameras.camera_to_world, np.float64))[:, :, :3]
    point = np.einsum("ntij,nthwj->nthwi", to_camera, homogeneous)
    pixel = np.einsum("ntij,nthwj->nthwi", np.asarray(cameras.intrinsics), point)
    grid = np.broadcast_to(np.asarray(g.pixel_grid(40, 56)), (*solid.shape, 2))
    np.testing.assert_allclose((pixel[..., :2] / pixel[..., 2:])[solid], grid[solid], atol=1e-2)
    np.testing.assert_allclose(pixel[..., 2][solid], np.asarray(buffers.depth)[solid], rtol=1e-4)
    turn = np.asarray(cameras.camera_to_world)[..., :3, :3]
    np.testing.assert_allclose(np.linalg.det(turn), 1.0, atol=1e-5)


def test_amodal_masks_contain_what_is_visible():
    shot, buffers, _ = truth()
    crowd = pick(many(SMALL, 16, num_objects=3), slice(0, 16))
    masks = np.asarray(jax.jit(jax.vmap(lambda one: g.amodal_masks(one, SMALL)))(shot))
    seg = np.asarray(buffers.seg)
    for slot in range(3):
        assert masks[:, :, slot][seg == slot + 1].all()
    np.testing.assert_array_equal(masks.any(2), seg > 0)
    share = np.asarray(jax.jit(jax.vmap(lambda one: g.visible_fraction(one, SMALL)))(crowd))
    assert (share >= 0).all() and (share <= 1).all()
    assert (share < 0.9).any() and (share == 1).any()


def test_unused_truth_is_not_computed():
    world = World(height=8, width=8, num_frames=7)

    def everything(shot):
        return render(shot, world), g.flow(shot, world), g.geometry(shot, world).normal

    shot = pick(small(), 0)
    plain = flops(lambda shot: render(shot, world), shot)
    assert flops(lambda shot: everything(shot)[0], shot) <= 1.02 * plain
    assert flops(everything, shot) > 1.2 * plain


def test_reading_between_pixels_is_linear():
    ramp = g.pixel_grid(5, 7)
    uv = jnp.array([[0.25, 3.5], [5.75, 0.0], [6.0, 4.0], [-3.0, 9.0]])
    inside = jnp.clip(uv, 0, jnp.array([6.0, 4.0])[None])
    np.testing.assert_allclose(g.sample_at(ramp, uv), inside, atol=1e-6)
