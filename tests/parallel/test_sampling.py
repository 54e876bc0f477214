"""Videos that devices make together: the noise, latents and frames of one device."""

import numpy as np
import pytest

import jvdm
from jvdm.errors import ConfigError
from jvdm.pipeline import Request
from tests.generate.nano import write_weights


@pytest.mark.slow
def test_a_mesh_begins_with_the_same_noise_and_ends_with_the_same_video(tmp_path):
    folder, made = write_weights(tmp_path), []
    for mesh in (None, "branch=2,sequence=2"):
        pipe = jvdm.load(folder, mesh=mesh, dtype="float32", progress=False)
        asked = Request(prompt="a red ball", seed=3, num_inference_steps=2, num_videos=2)
        run = pipe.start(pipe.prepare(asked))
        noise = np.asarray(run.state.x)
        latents = pipe.advance(run).state.x
        made.append((noise, np.asarray(latents), pipe.decode(latents).astype(int)))
    (noise, latents, frames), (same, near, shown) = made
    np.testing.assert_array_equal(noise, same)
    np.testing.assert_allclose(latents, near, atol=1e-5)
    assert np.abs(latents - noise).max() > 0.1
    assert np.abs(frames - shown).max() <= 1 and np.ptp(frames) > 10
    with pytest.raises(ConfigError, match="evaluates 1 of guidance; .*leave branch out"):
        pipe.prepare(Request(prompt="a red ball", guidance_scale=1.0))


@pytest.mark.slow
def test_stages_make_the_frames_of_one_device_and_refuse_what_they_cannot_split(tmp_path):
    """Two layers on two stages, and the two branches of guidance: three blocks of latent frames.

    Stages have the bits of one device (`tests/models/test_blockwise.py`). With `branch=2` a device
    has half of the rows, which XLA multiplies by another kernel (`patch_in` differs first).
    """
    folder, made = write_weights(tmp_path), []
    asked = {"seed": 3, "num_inference_steps": 2, "num_frames": 45}
    for mesh in (None, "stage=2,branch=2"):
        pipe = jvdm.load(folder, system="dualparal", mesh=mesh, dtype="float32", progress=False)
        run = pipe.start(pipe.prepare(Request(prompt="a red ball", **asked)))
        latents = pipe.advance(run).state.x
        made.append((np.asarray(latents), pipe.decode(latents)[0]))
    (latents, frames), (same, shown) = made
    np.testing.assert_allclose(latents, same, atol=1e-5)
    assert np.abs(frames.astype(int) - shown).max() <= 1
    assert len(frames) == 45 and np.ptp(frames) > 10
    plain = jvdm.load(folder, mesh="stage=2,branch=2", dtype="float32", progress=False)
    with pytest.raises(ConfigError, match="use --system dualparal"):
        plain.prepare(Request(prompt="a red ball", **asked))
