"""Sources on the accelerator: rings that follow from the step, on any number of devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import nano
from jvdm.errors import ConfigError, WeightsError
from jvdm.parallel.mesh import data_mesh
from jvdm.training.world_source import PlayedLatents, WorldClips, WorldLatents
from jvdm.vae.latent_space import load_latent_space
from jvdm.weights import safetensors
from jvdm.weights.folder import EMBEDDED
from jvdm.world.clips import clips
from pallas_kernels.attention import planned

SOURCE: Any = dataclasses.replace(nano.config().source, pool=16, fresh=4)


def draws(data, first: int, count: int):
    draw = jax.jit(SOURCE.draw, static_argnums=2)
    batches = []
    for step in range(first, first + count):
        batch, data = draw(data, jnp.int32(step), 8)
        batches.append(batch)
    return batches, data


@pytest.mark.slow  # renders and encodes 20 clips
def test_a_resumed_ring_is_the_uninterrupted_one():
    mesh = data_mesh(1)
    batches, end = draws(SOURCE.start(0, None, mesh), 0, 3)
    resumed = SOURCE.start(3, None, mesh)
    np.testing.assert_array_equal(end.told["tokens"], resumed.told["tokens"])
    np.testing.assert_array_equal(end.latents.view(jnp.uint16), resumed.latents.view(jnp.uint16))
    assert batches[0]["latents"].shape == (8, 3, 8, 8, 8)
    assert not np.array_equal(batches[0]["tokens"], batches[1]["tokens"])
    latents = np.asarray(end.latents, np.float32)
    assert abs(latents.mean()) < 0.5 and 0.5 < latents.std() < 1.5  # standardised
    assert SOURCE.saved(end) == b"" and SOURCE.feed(end) is end


@pytest.mark.slow
def test_a_run_that_goes_on_skips_the_clips_of_the_first():
    mesh = data_mesh(1)
    later = dataclasses.replace(SOURCE, skip=3 * SOURCE.fresh).start(0, None, mesh)
    seen = SOURCE.start(3, None, mesh)
    after, both = (
        np.sort(np.asarray(r.told["tokens"]).reshape(-1, 64), axis=0) for r in (later, seen)
    )
    np.testing.assert_array_equal(after, both)


@functools.partial(jax.jit, static_argnums=(0, 1))
def captions(source, style):
    """The tokens of the first 16 clips; what nobody looks at, pictures, is not compiled."""
    return clips(source.world, source.split, jnp.arange(16), caption_style=style).tokens


@pytest.mark.slow
def test_captions_are_of_the_style_that_is_asked_for():
    told = {}
    for style in ("mixed", "layout"):
        source = dataclasses.replace(SOURCE, caption_style=style)
        ring = np.asarray(source.start(0, None, data_mesh(1)).told["tokens"])[0]
        told[style] = np.sort(ring, 0)
        np.testing.assert_array_equal(told[style], np.sort(captions(source, style), 0))
    assert not np.array_equal(told["mixed"], told["layout"])


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_two_devices_hold_the_same_clips():
    one, two = (SOURCE.start(0, None, data_mesh(count)) for count in (1, 2))
    assert two.told["tokens"].shape == (2, 8, 64)
    assert {shard.data.shape for shard in two.told["tokens"].addressable_shards} == {(1, 8, 64)}
    rows = [
        sorted(map(tuple, np.asarray(d.told["tokens"]).reshape(-1, 64).tolist()))
        for d in (one, two)
    ]
    assert rows[0] == rows[1]


class Numbered(WorldLatents):
    """A ring of numbers in place of encoded clips: which ones, in which slots, is all there is."""

    def _encoded(self, space, indices):
        latents = indices.astype(jnp.bfloat16)[:, None, None, None, None]
        return latents, {"tokens": indices[:, None]}


def numbered(**changes) -> Any:
    fields = {f.name: getattr(SOURCE, f.name) for f in dataclasses.fields(SOURCE)}
    return Numbered(**{**fields, **changes})


def seen(source, mesh, steps, first=0):
    """The numbers of the batches and their slots, `[steps, 8]`, and the ring after them."""
    data, draw = source.start(first, None, mesh), jax.jit(source.draw, static_argnums=2)
    batches, slots = [], []
    for step in range(first, first + steps):
        batch, data = draw(data, jnp.int32(step), 8)
        batches.append(np.asarray(batch["tokens"])[:, 0])
        slots.append(
            [np.argwhere(np.asarray(data.told["tokens"]).ravel() == n)[0, 0] for n in batches[-1]]
        )
    return np.array(batches), np.array(slots), np.sort(np.asarray(data.told["tokens"]).ravel())


@pytest.mark.parametrize("devices", [1, 2])
def test_the_ring_has_the_shapes_that_were_foretold_and_compiles_once(devices, caplog):
    mesh, source = data_mesh(devices), numbered(skip=1000)
    foretold = source.shapes(mesh)
    with jax.log_compiles():
        ring = source.start(0, None, mesh)
    assert caplog.text.count("Compiling jit(_add)") == 1
    assert jax.tree.structure(foretold) == jax.tree.structure(ring)
    for shape, leaf in zip(*map(jax.tree.leaves, (foretold, ring)), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert shape.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_ring_holds_the_newest_clips_and_each_is_drawn_as_often(devices):
    source, mesh = numbered(), data_mesh(devices)
    batches, slots, ring = seen(source, mesh, 40)
    np.testing.assert_array_equal(ring, np.arange(160, 176))  # 4 fresh ones a step
    for step, batch in enumerate(batches):
        assert set(batch) <= set(range(4 * step + 4, 4 * step + 20))
    # A clip stays for four steps, of which each draws half as many as there are: it is drawn
    # twice, and not at all with a chance of (15 / 16)^32 = .13, .10 with two halves of eight.
    counts = np.bincount(batches.ravel(), minlength=176)[19:160]
    assert 1.7 < counts.mean() < 2.3 and (counts == 0).mean() < 0.22
    assert len(set(map(tuple, slots))) == 40
    assert not np.array_equal(slots[:, :4] % 8, slots[:, 4:] % 8)
    again = seen(source, mesh, 5, first=35)
    np.testing.assert_array_equal(again[0], batches[35:])
    np.testing.assert_array_equal(again[2], ring)


def test_another_seed_draws_others_from_the_same_ring():
    one, other = (seen(numbered(seed=seed), data_mesh(1), 3) for seed in (0, 1))
    assert not np.array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[2], other[2])


def test_clips_that_are_passed_over_are_those_of_the_run_before():
    _, _, ring = seen(numbered(skip=100), data_mesh(1), 0)
    np.testing.assert_array_equal(ring, np.arange(100, 116))


def test_rendered_clips_of_two_steps_share_none():
    source = WorldClips(SOURCE.world, num_frames=1)
    data, draw = source.start(0, None, data_mesh(1)), jax.jit(source.draw, static_argnums=2)
    first, second = (draw(data, jnp.int32(step), 4)[0].video for step in (0, 1))
    clips = np.concatenate([first, second]).reshape(8, -1)
    assert len(np.unique(clips, axis=0)) == 8


@pytest.mark.parametrize("source", [WorldClips(SOURCE.world), SOURCE])
def test_one_gpu_draws_by_the_kernel_and_each_of_several_its_own_clips(source, monkeypatch):
    """The kernel is not split over devices: each would draw all clips."""
    monkeypatch.setattr(planned, "backend", lambda: "gpu")
    monkeypatch.setattr(planned, "capability", lambda: "9.0")
    for devices in (1, 2):
        mesh = data_mesh(devices)
        data = source.shapes(mesh) if source is SOURCE else source.start(0, None, mesh)
        drawn = jax.make_jaxpr(source.draw, static_argnums=2)(data, jnp.int32(0), 8)
        assert ("pallas_call" in str(drawn)) == (devices == 1)


class Filmed(PlayedLatents):
    """A ring of films whose latent frames and actions say which frame they are."""

    def _encoded(self, space, indices):
        count = self.vae.latent_frames(self.world.num_frames)
        frames = jnp.broadcast_to(jnp.arange(count), (len(indices), count))
        latents = frames.astype(jnp.bfloat16)[..., None, None, None]
        return latents, {"tokens": indices[:, None], "actions": frames}


def filmed(window, devices: int = 1, steps: int = 20) -> dict[str, np.ndarray]:
    """All batches of films of nine latent frames, one after the other."""
    fields = {f.name: getattr(SOURCE, f.name) for f in dataclasses.fields(SOURCE)}
    fields["world"] = dataclasses.replace(SOURCE.world, num_frames=33)
    source = Filmed(**{**fields, "window": window})
    data, draw = source.start(0, None, data_mesh(devices)), jax.jit(source.draw, static_argnums=2)
    batches = [draw(data, jnp.int32(step), 8)[0] for step in range(steps)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_window_is_frames_in_a_row_that_begin_anywhere_with_what_was_done_in_them(devices):
    cut, whole = filmed(6, devices), filmed(None, devices)
    assert cut["latents"].shape == (160, 6, 1, 1, 1) and whole["latents"].shape[1] == 9
    frames = cut["latents"][..., 0, 0, 0].astype(int)
    np.testing.assert_array_equal(np.diff(frames, axis=1), 1)
    np.testing.assert_array_equal(frames, cut["actions"])
    np.testing.assert_array_equal(cut["tokens"], whole["tokens"])  # the same clips, told whole
    begins = np.bincount(frames[:, 0], minlength=4)
    assert len(begins) == 4 and begins.min() > 20  # 40 each on average
    assert len(np.unique(frames[:, 0].reshape(-1, 8), axis=0)) > 15  # of a step, and in it, others


def test_a_window_of_all_frames_is_the_film():
    cut, whole = filmed(9, steps=3), filmed(None, steps=3)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="pool 10, fresh 4"):
        dataclasses.replace(SOURCE, pool=10).start(0, None, data_mesh(1))
    for window in (0, 4):
        with pytest.raises(ConfigError, match=f"window of {window} .* 9 frames have 3"):
            dataclasses.replace(SOURCE, window=window).start(0, None, data_mesh(1))


def test_latents_are_standardised_and_restored():
    space = load_latent_space(EMBEDDED / "nano")
    latents = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 8))
    again = space.restore(space.standardize(latents))
    np.testing.assert_allclose(again, latents, atol=1e-5)
    assert np.abs(space.standardize(latents) - latents).max() > 0.1


def test_a_folder_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        load_latent_space(tmp_path)
    manifest = (EMBEDDED / "nano" / "model.json").read_text()
    (tmp_path / "model.json").write_text(manifest.replace('"vae": {', '"other": {'))
    safetensors.save(tmp_path / "vae.safetensors", {"a": np.zeros(3)})
    with pytest.raises(WeightsError, match="an autoencoder is needed"):
        load_latent_space(tmp_path)
