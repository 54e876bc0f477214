"""What a running training shows of itself."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jvdm.configs import nano
from jvdm.training.objective import Preview
from jvdm.training.previews import SamplePreview
from jvdm.training.showing import LABEL_HEIGHT, MARGIN, write_rows
from jvdm.vae.latent_space import load_latent_space
from jvdm.weights import safetensors
from jvdm.weights.folder import EMBEDDED
from jvdm.world.vocabulary import WORDS


def test_samples_of_held_out_prompts():
    experiment = nano.config()
    short = dataclasses.replace(experiment.package.defaults, num_inference_steps=3)
    preview = SamplePreview(nano.VAE, short, count=2)
    assert isinstance(preview, Preview)
    params = jax.tree.map(jnp.asarray, safetensors.load(EMBEDDED / "nano" / "dit.safetensors"))
    data = types.SimpleNamespace(space=load_latent_space(EMBEDDED / "nano"))
    clips, labels = preview.render(experiment.objective, params, data)
    assert clips.shape == (2, 9, 64, 64, 3) and -0.2 < clips.min() < 0.4 < clips.max() < 1.2
    said = labels[0].lower().replace(".", "").replace(",", "").replace(";", "").split()
    assert len(labels) == 2 and set(said) <= set(WORDS)
    # Three steps are enough for a smooth sky; an untrained model draws 0.02 there.
    assert np.abs(np.diff(clips[:, :, :8], axis=3)).mean() < 0.005


def test_bytes_and_numbers_give_the_same_sheet(tmp_path):
    pixels = np.arange(256, dtype=np.uint8)[:192].reshape(1, 1, 8, 8, 3)
    write_rows(tmp_path / "bytes.png", pixels, ["a"], columns=1)
    write_rows(tmp_path / "numbers.png", pixels.astype(np.float32) / 255, ["a"], columns=1)
    shown = np.asarray(Image.open(tmp_path / "bytes.png"))
    np.testing.assert_array_equal(shown[LABEL_HEIGHT : LABEL_HEIGHT + 8, :8], pixels[0, 0])
    np.testing.assert_array_equal(shown, np.asarray(Image.open(tmp_path / "numbers.png")))
    assert shown.shape == (8 + MARGIN + LABEL_HEIGHT, 8 + MARGIN, 3)
