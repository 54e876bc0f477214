"""What a running training shows of itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jvdm import generate
from jvdm.configs import nano
from jvdm.generate import GenerateOptions
from jvdm.samplers import ShiftedLevels
from jvdm.training.export import export
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.objective import Preview
from jvdm.training.previews import SamplePreview
from jvdm.training.showing import LABEL_HEIGHT, MARGIN, write_rows
from jvdm.video import Video
from jvdm.weights import safetensors
from jvdm.weights.folder import EMBEDDED
from jvdm.world.vocabulary import WORDS


@pytest.fixture(scope="module")
def rendered():
    """What a preview shows of the shipped nano weights in three steps, and what it was given."""
    experiment = nano.config()
    system = experiment.objective.system
    sampling = dataclasses.replace(system.sampling, levels=ShiftedLevels(3, 2.0))
    objective = FlowMatching(dataclasses.replace(system, sampling=sampling))
    tree = safetensors.load(EMBEDDED / "nano" / "dit.safetensors")
    params = jax.tree.map(jnp.asarray, {"model": tree["dit"], "text": tree["text"]})
    preview = SamplePreview(experiment.package, count=2)
    assert isinstance(preview, Preview)
    return preview.render(objective, params, None), objective, params, experiment.package


def test_samples_of_held_out_prompts(rendered):
    (frames, labels), *_ = rendered
    clips = frames / 255.0
    assert clips.shape == (2, 9, 64, 64, 3) and -0.2 < clips.min() < 0.4 < clips.max() < 1.2
    said = labels[0].lower().replace(".", "").replace(",", "").replace(";", "").split()
    assert len(labels) == 2 and set(said) <= set(WORDS)
    # Three steps are enough for a smooth sky; an untrained model draws 0.02 there.
    assert np.abs(np.diff(clips[:, :, :8], axis=3)).mean() < 0.005


def test_a_preview_is_what_generate_makes_of_the_exported_weights(rendered, tmp_path):
    (frames, labels), objective, params, package = rendered
    export(objective, package, tmp_path / "weights", params)
    options = GenerateOptions(labels[1], seed=1, weights=str(tmp_path / "weights"), output=tmp_path)
    (record,) = generate.run(options)["videos"]
    assert record["sha256"]["frames"] == Video(frames[1], record["settings"]["fps"]).digest()


def test_bytes_and_numbers_give_the_same_sheet(tmp_path):
    pixels = np.arange(256, dtype=np.uint8)[:192].reshape(1, 1, 8, 8, 3)
    write_rows(tmp_path / "bytes.png", pixels, ["a"], columns=1)
    write_rows(tmp_path / "numbers.png", pixels.astype(np.float32) / 255, ["a"], columns=1)
    shown = np.asarray(Image.open(tmp_path / "bytes.png"))
    np.testing.assert_array_equal(shown[LABEL_HEIGHT : LABEL_HEIGHT + 8, :8], pixels[0, 0])
    np.testing.assert_array_equal(shown, np.asarray(Image.open(tmp_path / "numbers.png")))
    assert shown.shape == (8 + MARGIN + LABEL_HEIGHT, 8 + MARGIN, 3)
