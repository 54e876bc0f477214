"""Training on one's own videos, by the commands of docs; what is refused before step 1."""

import dataclasses
import json
import re
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.configs import my_videos, nano, nano_vae, reader, tiny_t2v
from jvdm.errors import CheckpointError, ConfigError, JvdmError, WeightsError
from jvdm.experiment import describe
from jvdm.parallel.mesh import data_mesh
from jvdm.train import train
from jvdm.training import setup
from jvdm.training.checkpoint import read_checkpoint
from jvdm.training.export import ExportOptions, check_export, recipe_of
from jvdm.training.export import run as export
from jvdm.training.optimizer import Optimizer
from jvdm.weights import read_manifest, safetensors
from jvdm.weights.folder import digests, embedded, find
from tests.training import pair, toy

pytest.importorskip("grain")
README = (Path(__file__).parents[2] / "docs/training.md").read_text()


def commands(text, word):
    """Returns the `jvdm` commands of a text that hold a word, without their remarks."""
    found = re.findall(r"^jvdm (.*?)(?:  .*)?$", text, re.MULTILINE)
    return [shlex.split(line) for line in found if word in line]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder in which the README's own-videos commands were run, with the nano networks."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "videos").mkdir()
    pipe = jvdm.load("nano", progress=False)
    for number, text in enumerate(["a red ball rests", "a blue can rests", "a green box rests"]):
        video = pipe(text, seed=number, num_inference_steps=1, progress=False)
        video.save(folder / f"videos/{number}.mp4")
        (folder / f"videos/{number}.txt").write_text(text)
    (train_readme,) = commands(README, "my_videos.py")
    (train_recipe,) = commands(my_videos.__doc__, "my_videos.py")
    small = ["--num-steps", "3", "--checkpoint-every", "2", "--source.frames.threads", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(my_videos, "tiny_t2v", nano)
        patch.setattr(my_videos, "vae", nano_vae)
        patch.setattr(my_videos, "WEIGHTS", embedded("nano"))
        patch.setattr(my_videos, "BATCH_SIZE", 4)
        assert train_readme[:3] == ["train", "configs/my_videos.py", "--workdir"]
        for command in (train_readme, train_recipe):  # the second one only exports again
            assert cli.main([*command, *small]) == 0
        yield folder / train_readme[3]


@pytest.mark.slow
def test_the_commands_of_the_readme_end_in_weights_that_make_videos(own):
    weights = own / "weights"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = jvdm.load(weights, progress=False)
    video = pipe("a red ball rests", seed=0, num_inference_steps=2, progress=False)
    assert video.frames.shape == (9, 64, 64, 3)
    assert cli.main(["inspect", str(weights), "--verify"]) == 0
    arrays, theirs = safetensors.load(weights / "model.safetensors"), safetensors.flatten
    started = find("nano") / "vae.safetensors"
    assert (weights / "vae.safetensors").read_bytes() == started.read_bytes()
    assert all(np.isfinite(leaf).all() for leaf in theirs(arrays).values())


@pytest.mark.slow
def test_any_checkpoint_of_it_is_exported_by_a_command(own, tmp_path, capsys):
    (command,) = commands(README, "export work")
    assert command == ["export", str(own.relative_to(Path.cwd()))]
    before = digests(own / "weights")
    shutil.rmtree(own / "weights")
    assert cli.main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["step"] == 3 and digests(own / "weights") == before
    earlier = tmp_path / "earlier"
    assert cli.main([*command, "--step", "2", "--output", str(earlier)]) == 0
    assert digests(earlier)["model.safetensors"] != before["model.safetensors"]
    assert digests(earlier)["vae.safetensors"] == before["vae.safetensors"]
    jvdm.load(earlier, progress=False)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The work directory of a run that ended without weights."""
    folder = tmp_path_factory.mktemp("stopped")
    train(toy.experiment(num_steps=20, sample_every=0), folder)
    shutil.rmtree(folder / "weights")
    return folder


def test_the_averages_of_a_checkpoint_are_exported(stopped, tmp_path):
    for step in (10, 20):
        said = export(ExportOptions(stopped, step, tmp_path / str(step)))
        arrays, _ = read_checkpoint(stopped / "checkpoints", step)
        written = safetensors.load(tmp_path / str(step) / "line.safetensors")["head"]["kernel"]
        np.testing.assert_array_equal(written, arrays["ema/head/kernel"].astype(np.float16))
        assert said["step"] == step and said["weights"] == str(tmp_path / str(step))
        assert read_manifest(tmp_path / str(step)).notes["largest"] == said["largest"]


def test_what_cannot_be_exported_says_how_it_can(tmp_path):
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        export(ExportOptions(tmp_path))
    bare = dataclasses.replace(toy.experiment(num_steps=10, sample_every=0), package=None)
    train(bare, tmp_path)
    why = "checkpoint 10 in .* has no package; start .*jvdm train` again with --num-steps 10"
    with pytest.raises(CheckpointError, match=why):
        export(ExportOptions(tmp_path))

    @dataclasses.dataclass(frozen=True)
    class Mine(toy.Line):
        """A model that no other process can import."""

    assert "define it at the top" in recipe_of(Mine(), toy.experiment().package)["why"]


def refused(experiment, tmp_path, kind, message):
    """The run ends before its first step, and has written no checkpoint."""
    with pytest.raises(kind, match=message):
        train(experiment, tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").glob("[0-9]*"))


REFUSED = """
import atexit, time
from jvdm.errors import ConfigError
from jvdm.stopping import StopRequest
atexit.register(print, "the process is finalised")
try:
    with StopRequest() as stop:
        compiling = stop.background(lambda: time.sleep(SECONDS))
        time.sleep(0.5)
        raise ConfigError("no")
except ConfigError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


def test_a_process_that_still_compiles_is_not_finalised_after_an_error(run_python):
    """Else it ends with code 134: XLA aborts when Python goes away below it."""
    left = run_python("-c", REFUSED.replace("SECONDS", "60"), timeout=30)
    assert (left.returncode, left.stdout) == (2, "no\n")
    ended = run_python("-c", REFUSED.replace("SECONDS", "0"), timeout=30)
    assert (ended.returncode, ended.stdout) == (2, "no\nthe process is finalised\n")


def test_an_autoencoder_that_is_not_that_of_the_latents_is_refused(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(find("nano"), other)
    experiment = nano.config()

    def packed(*parts):
        return dataclasses.replace(
            experiment, package=dataclasses.replace(experiment.package, parts=parts)
        )

    shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0))
    for same in (packed(str(other)), packed("nano")):  # equal content in another place; a name
        check_export(same.objective, same.package, same.source, tmp_path / "w", shapes)
    same = packed(str(other))
    manifest = json.loads((other / "model.json").read_text())
    manifest["latent_mean"][0] += 1
    (other / "model.json").write_text(json.dumps(manifest))
    message = f"latents come from .*nano, and the autoencoder of {other} goes.*--source.vae-weights"
    refused(same, tmp_path, WeightsError, message)
    refused(packed(), tmp_path, WeightsError, "vae would be missing.*--package.parts")


def test_a_part_that_this_jvdm_cannot_build_is_refused(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(find("nano"), other)
    text = (other / "model.json").read_text()
    (other / "model.json").write_text(text.replace("VideoVAE", "VideoVAE9"))
    package = dataclasses.replace(nano.config().package, parts=(str(other),))
    changed = dataclasses.replace(nano.config(), package=package)
    refused(changed, tmp_path, WeightsError, "VideoVAE9 is named.*update jvdm")


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (nano_vae.config(), r"num_frames is 6; it must be 4n \+ 1"),
        (reader.config(), "ClipReading could not be measured at the end; ZeroDivisionError"),
    ],
    ids=["autoencoder", "reader"],
)
def test_measures_that_would_fail_at_the_end_are_refused(tmp_path, experiment, message):
    with pytest.raises(ConfigError, match="--objective.held-out is 0"):
        dataclasses.replace(experiment.objective, held_out=0)
    world = dataclasses.replace(experiment.objective.world, num_frames=6, height=60)
    objective = dataclasses.replace(experiment.objective, world=world)
    experiment.objective.check(jax.eval_shape(objective.init, jax.random.key(0)))
    changed = dataclasses.replace(experiment, objective=objective)
    refused(changed, tmp_path, JvdmError, message)


def assert_equal(found, wanted):
    found, wanted = safetensors.flatten(found), safetensors.flatten(wanted)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_training_starts_from_all_components_of_embedded_weights():
    experiment = dataclasses.replace(nano.config(), start_from=Path("nano"))
    run = (experiment.objective, Optimizer().build(1), 0, data_mesh(1))
    state = setup.make_state(*run, setup.given(experiment.objective, experiment.start_from))
    for part in ("text", "model"):
        wanted = read_manifest(find("nano")).parameters(find("nano"), part)[1]
        assert_equal(state.params[part], wanted)
        assert_equal(state.ema[part], wanted)
    said = describe(experiment)["start_from"]
    assert said["sha256"] == describe(find("nano"))["sha256"]  # whatever the name means later


def test_the_shipped_recipe_starts_from_the_shipped_weights():
    objective = tiny_t2v.config().objective
    found: Any = setup.given(objective, find("tiny_t2v"))
    for part in ("text", "model"):
        assert_equal(found[part], read_manifest(find(None)).parameters(find(None), part)[1])


def test_an_autoencoder_starts_from_a_folder_and_other_models_are_refused():
    mesh, transform = data_mesh(1), Optimizer().build(1)
    objective = nano_vae.config().objective
    state = setup.make_state(objective, transform, 0, mesh, setup.given(objective, find("nano")))
    _, wanted = read_manifest(find("nano")).parameters(find("nano"), "vae")
    assert_equal(state.params, wanted)
    assert_equal(state.ema, wanted)
    for objective, kind, message in [
        (tiny_t2v.config().objective, WeightsError, "holds another model"),
        (toy.Line(), WeightsError, "a line is needed"),
        (pair.experiment().objective, ConfigError, "does not say which components"),
    ]:
        with pytest.raises(kind, match=message):
            setup.given(objective, find("nano"))
