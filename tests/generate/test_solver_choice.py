"""The solver is chosen when a model is loaded: by name, or the model's own."""

import dataclasses

import numpy as np
import pytest

import jvdm
from jvdm import generate
from jvdm.errors import ConfigError
from jvdm.generate import GenerateOptions
from jvdm.samplers import Euler, UniPC
from jvdm.weights import read_manifest, write_manifest
from tests.generate import nano

PROMPT = "a large red ball rolls to the left"


def latents(pipe):
    return np.asarray(pipe(PROMPT, seed=0, output_type="latent", progress=False))


def test_a_solver_by_name_and_the_default_of_the_weights(weights, tmp_path):
    plain = jvdm.load(weights, progress=False)
    chosen = jvdm.load(weights, solver="unipc2", progress=False)
    assert plain.model.networks.solver == Euler()
    assert chosen.model.networks.solver == UniPC(2)
    folder = nano.write_weights(tmp_path)
    manifest = read_manifest(folder)
    defaults = dataclasses.replace(manifest.defaults, solver="unipc2")
    write_manifest(folder, dataclasses.replace(manifest, defaults=defaults))
    own = jvdm.load(folder, progress=False)
    assert own.model.networks.solver == UniPC(2)
    np.testing.assert_array_equal(latents(own), latents(chosen))
    assert np.abs(latents(plain) - latents(chosen)).max() > 2e-5


def test_an_unknown_solver_is_refused_with_the_names(weights):
    with pytest.raises(ConfigError, match="'eular'") as error:
        jvdm.load(weights, solver="eular", progress=False)
    assert "euler" in str(error.value) and "dpmpp_3m" in str(error.value)


def test_a_record_remembers_the_solver(weights, tmp_path):
    options = GenerateOptions(PROMPT, seed=0, weights=str(weights), output=tmp_path)
    (first,) = generate.run(dataclasses.replace(options, solver="dpmpp_2m"))["videos"]
    assert first["settings"]["solver"] == "dpmpp_2m"
    like = GenerateOptions(like=tmp_path / "first.json", output=tmp_path / "again")
    (tmp_path / "again").mkdir()
    (tmp_path / "first.json").write_bytes(
        next(path for path in tmp_path.glob("*.json") if path.name != "first.json").read_bytes()
    )
    (again,) = generate.run(like)["videos"]
    assert again["sha256"] == first["sha256"]
    (other,) = generate.run(dataclasses.replace(like, solver="euler"))["videos"]
    assert other["sha256"] != first["sha256"]
