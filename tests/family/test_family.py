"""Another family is files: it trains, exports, loads, generates and is evaluated unchanged."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli, evaluate
from jvdm.evaluate import EvaluateOptions
from jvdm.experiment import Experiment
from jvdm.train import train
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.optimizer import Optimizer
from jvdm.values import to_data
from jvdm.weights import Defaults, Manifest, safetensors, write_manifest
from jvdm.weights.package import Packaging
from tests.architecture.source import project
from tests.family.family import SYSTEM, Bands

DEFAULTS = Defaults(height=16, width=32, num_frames=9, fps=12.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights folder that training leaves, and its summary."""
    vae, workdir = tmp_path_factory.mktemp("vae"), tmp_path_factory.mktemp("run")
    params = SYSTEM.vae.init(jax.random.key(1), jnp.zeros((1, 9, 16, 32, 3)))["params"]
    safetensors.save(vae / "vae.safetensors", params, dtype="float32")
    ones = (0.0,) * 4, (1.0,) * 4
    components = {"vae": to_data(SYSTEM.vae)}
    write_manifest(vae, Manifest("bands", components, *ones, DEFAULTS, 9, ((16, 32),)))
    experiment = Experiment(
        name="bands",
        objective=FlowMatching(SYSTEM),
        source=Bands(),
        optimizer=Optimizer(kind="adamw", learning_rate=1e-2, warmup_steps=5),
        batch_size=16,
        num_steps=400,
        ema_decay=0.9,
        log_every=50,
        package=Packaging("bands", DEFAULTS, parts=(str(vae),)),
    )
    return workdir / "weights", train(experiment, workdir)


def test_it_learns(trained):
    _, result = trained
    assert result["loss"] < 0.3


def test_its_weights_are_loaded_as_the_system_that_was_trained(trained):
    weights, _ = trained
    pipe = jvdm.load(weights, progress=False)
    assert pipe.system == SYSTEM
    assert repr(pipe).startswith("Pipeline(bands, 9 frames of 16x32")


def test_the_prompt_decides_what_is_made(trained):
    weights, _ = trained
    pipe = jvdm.load(weights, progress=False)
    latents = pipe(["a" * 3, "a" * 21], seed=0, output_type="latent", progress=False)
    means = np.asarray(latents).mean((1, 2, 3, 4))
    assert means[0] < -0.2 and means[1] > 0.2  # 3 / 12 - 1 and 21 / 12 - 1


def test_its_sizes_are_its_own(trained):
    weights, _ = trained
    pipe = jvdm.load(weights, progress=False)
    with pytest.warns(UserWarning, match="was not trained"):
        assert pipe("aaa", height=20, seed=0, progress=False).frames.shape == (9, 20, 32, 3)
    with pytest.raises(jvdm.ShapeError, match="height is 18; it must be a multiple of 4"):
        pipe("aaa", height=18, progress=False)
    with pytest.raises(jvdm.ShapeError, match="num_frames is 13; it must be 8n"):
        pipe("aaa", num_frames=13, progress=False)
    picture = np.zeros((16, 32, 3), np.uint8)
    assert pipe("aaa", image=picture, seed=0, progress=False).frames.shape == (9, 16, 32, 3)


def test_the_command_line_makes_its_videos(trained, tmp_path, capsys):
    weights, _ = trained
    arguments = ["generate", "aaaa", "--weights", str(weights), "--output", str(tmp_path)]
    chosen = ["--seed", "1", "--system", "wave", "--sampling.solver", "euler", "--json"]
    assert cli.main([*arguments, *chosen]) == 0
    (record,) = json.loads(capsys.readouterr().out)["videos"]
    assert record["system"]["prediction"] == "v"
    assert record["system"]["process"]["recipe"].endswith(":vp_cosine")


@pytest.mark.slow
def test_it_is_evaluated(trained, tmp_path):
    weights, _ = trained
    options = EvaluateOptions(
        weights=str(weights), sets=("A",), num_prompts=2, batch_size=2, output=tmp_path
    )
    result = evaluate.run(options)
    assert "count" in result["sets"]["A"]["measures"]


# Where a concrete network may be named: in its own package, and where weights of layout 1 are read.
OWN = {
    "WordEncoder": ("jvdm.text",),
    "WordTokenizer": ("jvdm.text",),
    "VideoDiT": ("jvdm.models",),
    "VideoVAE": ("jvdm.vae",),
}


def test_no_other_module_names_a_concrete_network():
    found = [
        f"{module.path} imports {name}"
        for module in project("jvdm")
        for name, homes in OWN.items()
        if not module.name.startswith(homes)
        and re.search(rf"^\s*from \S+ import .*\b{name}\b|^ +{name},$", module.text, re.MULTILINE)
    ]
    assert not found
