"""Real objectives and sources continue bit-identically, not only the toy of `test_resume`."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import nano, nano_vae
from jvdm.data.host import HostSource
from jvdm.parallel.mesh import data_mesh
from jvdm.train import train
from jvdm.training.checkpoint import read_checkpoint
from jvdm.training.host_latents import HostLatents
from jvdm.training.world_source import WorldLatents
from jvdm.vae.latent_space import LatentSpace
from jvdm.world.records import WorldSource
from jvdm.world.scene import World
from tests.generate.nano import drawn

pytest.importorskip("grain")

WORLD = World(height=16, width=16, num_frames=5, fps=6.0, supersample=1, substeps=2)
VAE = nano_vae.VAE.clone(latent_channels=4, widths=(8, 16))
MEAN, STD = 0.25, 2.0  # of the latents, as if they had been measured
RUN = {"num_steps": 6, "batch_size": 4, "log_every": 2, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def untrained():
    made = drawn(VAE.init, jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))
    return jax.device_get(made["params"])


@pytest.fixture(autouse=True)
def weights(monkeypatch, untrained):
    """An untrained autoencoder in place of a weights folder."""

    def load(folder):
        params = jax.tree.map(jnp.array, untrained)
        return LatentSpace(params, jnp.full(VAE.latent_channels, MEAN), jnp.full(4, STD))

    for module in ("jvdm.training.host_latents", "jvdm.training.world_source"):
        monkeypatch.setattr(f"{module}.load_latent_space", load)


def small(source):
    """The nano recipe with one layer, on 16 x 16 pixels and 5 frames."""
    whole = nano.config()
    system = whole.objective.system
    networks = {
        "model": system.model.clone(depth=1, latent_channels=VAE.latent_channels),
        "text": system.text.clone(depth=1),
        "vae": VAE,
    }
    small = dataclasses.replace(system, **networks)
    objective = dataclasses.replace(whole.objective, system=small)
    return dataclasses.replace(whole, objective=objective, source=source, package=None, **RUN)


def host_frames():
    return HostSource(WorldSource(WORLD, stop=10), RUN["batch_size"], threads=2)


def sources():
    folder = Path("unused")
    world = WorldLatents(WORLD, VAE, folder, pool=16, fresh=2)
    return {"world": world, "host": HostLatents(host_frames(), VAE, folder)}


def test_latents_of_host_clips_are_those_of_the_encoder(untrained):
    source = sources()["host"]
    data = source.feed(source.start(0, None, data_mesh(1)))
    batch, _ = jax.jit(lambda data: source.draw(data, jnp.int32(0), 4))(data)
    frames = data.frames.video.astype(jnp.float32) / 255
    expected = VAE.apply({"params": untrained}, frames, method="encode").mean
    np.testing.assert_allclose(batch["latents"], (expected - MEAN) / STD, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(batch["tokens"], data.frames.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["world", "host"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, kind):
    experiment = small(sources()[kind])
    train(experiment, tmp_path / "whole", mesh=data_mesh(1))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
    result = train(experiment, tmp_path / "resumed", resume="must", mesh=data_mesh(1))
    assert result["resumed_from"] == 3
    whole, _ = read_checkpoint(tmp_path / "whole" / "checkpoints", 6)
    resumed, _ = read_checkpoint(tmp_path / "resumed" / "checkpoints", 6)
    different = [name for name in whole if whole[name].tobytes() != resumed[name].tobytes()]
    assert not different
