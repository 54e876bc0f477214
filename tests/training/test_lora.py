"""Low-rank changes of a small Wan are trained by the command of the README, and make videos."""

import dataclasses
import importlib
import shutil
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.errors import ConfigError
from jvdm.models.conditions import Conditions, TextStates
from jvdm.parallel import mesh_of
from jvdm.pipeline.loading import manifest_of
from jvdm.samplers import Call
from jvdm.samplers.denoiser import ask
from jvdm.training import encoded_clips
from jvdm.training.checkpoint import read_checkpoint
from jvdm.training.encoded_clips import EncodedClips
from jvdm.training.low_rank import LowRankMatching, base_of
from jvdm.training.objective import TrainCall
from jvdm.video import Video
from jvdm.weights import lora
from jvdm.weights.diffusers import Published
from jvdm.weights.lora import Adapter
from jvdm.weights.safetensors import flatten, load_stored, unflatten
from tests.parallel import several
from tests.training.test_own_videos import README, commands
from tests.vae.nano import QUICK
from tests.weights.ltx_folder import write_ltx
from tests.weights.wan_folder import write_wan

wan_lora: Any = importlib.import_module("jvdm.configs.families.wan_lora")

pytestmark = pytest.mark.slow
SIZE = {"height": 32, "width": 64, "num_frames": 5}
STEPS = 24
CLIPS = 6
HELD = """
import sys, time
from jvdm import cli
from jvdm.training import encoded_clips
write = encoded_clips.save_stored

def held(*given):
    write(*given)
    time.sleep(600)

encoded_clips.save_stored = held
sys.exit(cli.main(sys.argv[1:]))
"""
"""`jvdm` whose encoder does not go on after its first clip: only a stop ends it."""


def films(folder, count=5, fps=16.0):
    """Writes four films of a square that moves."""
    for number in range(4):
        frames = np.full((count, 32, 64, 3), 40 * number, np.uint8)
        for frame, picture in enumerate(frames):
            picture[8:24, 8 * frame % 48 : 8 * frame % 48 + 16, number % 3] = 255
        Video(frames, fps).save(folder / f"{number}.mp4")
        (folder / f"{number}.txt").write_text(f"a square, number {number}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The base, and the folder of a run that the README's command made."""
    folder = tmp_path_factory.mktemp("lora")
    write_wan(folder / "FOLDER")
    (folder / "videos").mkdir()
    films(folder / "videos")
    (command,) = commands(README, "wan_lora.py")
    assert command in commands(wan_lora.__doc__, "wan_lora.py")
    small = [f"--source.clips.{name.replace('_', '-')}={size}" for name, size in SIZE.items()]
    small += ["--objective.rank=2", "--objective.alpha=4", "--optimizer.learning-rate=0.02"]
    small += [f"--num-steps={STEPS}", "--checkpoint-every=12", "--optimizer.warmup-steps=2"]
    small += ["--batch-size=4", "--source.batch-size=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*command, *small]) == 0
    return folder / "FOLDER", folder / "work/lora", [*command, *small]


@pytest.fixture(scope="module")
def objective(trained):
    return LowRankMatching(base=str(trained[0]), rank=2, alpha=4.0)


def batch_of(workdir):
    """Returns all clips with their captions, as a step sees them."""
    (folder,) = (workdir / "encoded").iterdir()
    clips = [load_stored(path)["latents"] for path in sorted(folder.glob("clip-*"))]
    texts = [load_stored(path) for path in sorted(folder.glob("text-*"))]
    (nothing,) = (text for text in texts if text["lengths"] == min(t["lengths"] for t in texts))
    told = [text for text in texts if text is not nothing]
    assert len(told) == len(clips) == 4

    def states(rows):
        made, lengths = ([row[name] for row in rows] for name in ("states", "lengths"))
        return TextStates(jnp.stack(made), jnp.stack(lengths))

    return {"latents": jnp.stack(clips), "text": states(told), "nothing": states([nothing])}


def test_the_loss_falls_and_only_factors_are_kept(trained, objective):
    _, workdir, _ = trained
    arrays, _ = read_checkpoint(workdir / "checkpoints")
    fresh = objective.init(jax.random.key(0))
    names = flatten(fresh)
    assert {n.removeprefix("params/") for n in arrays if n.startswith("params/")} == set(names)
    factors = sum(x.nbytes for x in names.values())
    assert sum(x.nbytes for x in arrays.values()) < 4 * factors + 1000  # with average and moments
    after = jax.tree.unflatten(jax.tree.structure(fresh), [arrays[f"ema/{name}"] for name in names])
    frozen, batch = objective.frozen(), batch_of(workdir)

    def loss(params, seed):
        call = TrainCall(jnp.int32(0), jax.random.key(seed), {}, frozen)
        return objective.loss(params, batch, call)[0]

    run = jax.jit(loss, compiler_options=QUICK)
    before, now = (np.mean([run(params, seed) for seed in range(8)]) for params in (fresh, after))
    assert now < 0.8 * before


def test_step_0_is_the_published_network_bit_for_bit(trained, objective):
    base, frozen = base_of(objective.base, None), objective.frozen()
    batch = batch_of(trained[1])
    told, t = Conditions(text=batch["text"]), jnp.full((4, 3), 0.7)

    def plain(x):
        return ask(base.system.predict(frozen, told), base.system.process, x, Call.at(t), None)[0]

    def changed(x):
        return objective.predict(objective.init(jax.random.key(1)), frozen, x, t, told)

    made = [jax.jit(f, compiler_options=QUICK)(batch["latents"]) for f in (plain, changed)]
    np.testing.assert_array_equal(made[0], made[1])


def test_gradients_in_16_bits_are_nearly_those_in_32(trained, objective):
    """The type of accelerators; all projections and the feed-forward part are changed."""
    batch, found = batch_of(trained[1]), []
    fresh = objective.init(jax.random.key(2))
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(3), x.shape), fresh)
    for dtype in ("float32", "bfloat16"):
        one = dataclasses.replace(objective, dtype=dtype)
        frozen, given = (
            one.frozen(),
            jax.tree.map(
                lambda x, dtype=dtype: (
                    x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
                ),
                batch,
            ),
        )

        def loss(params, one=one, frozen=frozen, given=given):
            call = TrainCall(jnp.int32(0), jax.random.key(0), {}, frozen)
            return one.loss(params, given, call)[0]

        found.append(flatten(jax.jit(jax.grad(loss), compiler_options=QUICK)(params)))
    wide, narrow = found
    assert any("down/kernel" in name for name in wide) and any("up/kernel" in name for name in wide)
    for name, slope in wide.items():
        assert narrow[name].dtype == slope.dtype == jnp.float32
        along = np.vdot(narrow[name], slope) / np.linalg.norm(slope) / np.linalg.norm(narrow[name])
        assert along > 0.98, (name, along)


def test_it_continues_with_the_same_bits_and_encodes_nothing_again(trained, tmp_path):
    _, workdir, command = trained
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / f"run/checkpoints/{STEPS}")
    shutil.rmtree(tmp_path / "run/weights")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/encoded").rglob("*.s*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workdir.parents[1])
        assert cli.main([*command, "--workdir", str(tmp_path / "run")]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times} and len(times) == 9
    once, again = (place / "weights/lora.safetensors" for place in (workdir, tmp_path / "run"))
    assert once.read_bytes() == again.read_bytes()


def test_the_file_makes_videos_and_is_what_was_trained(trained, objective, tmp_path):
    folder, workdir, _ = trained
    path = workdir / "weights/lora.safetensors"
    keys = load_stored(path).keys()
    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in keys and len(keys) == 2 * 2 * 10
    base = base_of(objective.base, None)
    (network,) = base.manifest.networks(base.shapes).values()
    found = lora.factors(lora.read(Adapter(path), network.table, base.shapes), *network[1:])
    arrays, _ = read_checkpoint(workdir / "checkpoints")
    for name, factor in flatten(found.low_rank).items():
        kept = arrays[f"ema/{name}"] * (1 if name.endswith("down") else 2)  # alpha / rank
        np.testing.assert_array_equal(factor, kept)
    sizes = {**SIZE, "num_inference_steps": 2, "seed": 0, "progress": False}
    pipes = [jvdm.load(folder, lora=[path] * count, progress=False) for count in (0, 1)]
    made = [pipe("a square", **sizes).frames for pipe in pipes]
    assert made[1].shape == (5, 32, 64, 3) and np.any(made[0] != made[1])
    assert cli.main(["export", str(workdir), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "lora.safetensors").read_bytes() == path.read_bytes()


def test_both_networks_of_a_folder_are_trained_into_one_file(tmp_path):
    folder = str(write_wan(tmp_path / "two", "a14b"))
    objective = LowRankMatching(folder, 1, targets=("attn1.to_q",))
    params = objective.init(jax.random.key(0))
    assert params.keys() == {"high", "low"}
    keys = load_stored(objective.write(tmp_path, params)).keys()
    assert "transformer_2.blocks.1.attn1.to_q.lora_B.weight" in keys and len(keys) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"targets": ("to_q", "to_w")}, "targets to_w match nothing.*did you mean to_"),
        ({"targets": ()}, "match nothing"),
        ({"base": "nano"}, "low-rank changes are of published networks"),
    ],
)
def test_what_cannot_be_trained_is_refused(objective, change, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(objective, **change).init(jax.random.key(0))


def test_a_batch_is_split_over_the_parts_of_a_mesh_that_share_videos(trained, monkeypatch):
    """Devices of a sequence see the same clip: one is enough for them, not for two parts."""
    clips = wan_lora.config().source.clips
    clips = dataclasses.replace(clips, folder=trained[1].parents[1] / "videos", **SIZE)
    source = EncodedClips(clips, 1, workdir=trained[1], base=str(trained[0]))
    state = source.start(0, None, mesh_of("sequence=4"))
    assert state.latents.shape[0] == 1
    with pytest.raises(ConfigError, match="1 clips for 4 devices; .*multiple of 4"):
        source.start(0, None, mesh_of("data=4"))
    monkeypatch.setattr(encoded_clips, "agreed", lambda *_: False)
    with pytest.raises(ConfigError, match="processes of this run have different clips or weights"):
        source.start(0, None, mesh_of("sequence=4"))


def test_a_folder_without_films_or_with_fewer_than_a_batch_is_refused(trained, tmp_path, capsys):
    folder, workdir, command = trained
    (tmp_path / "none").mkdir()
    given = [*command, "--workdir", str(tmp_path / "run"), "--objective.base", str(folder)]
    assert cli.main([*given, "--source.clips.folder", str(tmp_path / "none")]) == 2
    assert "has no usable video" in capsys.readouterr().err
    shutil.copytree(workdir / "encoded", tmp_path / "run/encoded")
    few = ["--batch-size=8", "--source.batch-size=8", "--source.clips.folder"]
    assert cli.main([*given, *few, str(workdir.parents[1] / "videos")]) == 2
    assert "4 usable clips for batches of 8" in capsys.readouterr().err


def test_two_processes_stop_while_one_encodes_and_go_on_with_what_it_has(trained, tmp_path):
    """Clips that were encoded are not encoded again, and both read what one has written."""
    folder, workdir, command = trained
    (tmp_path / "videos").mkdir()
    for number in range(CLIPS):
        for kind in ("mp4", "txt"):
            film = workdir.parents[1] / f"videos/{number % 4}.{kind}"
            shutil.copy(film, tmp_path / f"videos/{number}.{kind}")
    given = [*command, "--workdir", str(tmp_path / "run"), "--num-steps=2"]
    given += ["--source.clips.folder", str(tmp_path / "videos"), "--objective.base", str(folder)]

    def start(*program):
        place = ["--coordinator-address", f"127.0.0.1:{several.free_port()}", "--num-processes=2"]
        ids = (f"--process-id={process}" for process in range(2))
        return [several.begin(*program, *given, *place, one) for one in ids]

    def clips():
        found = (tmp_path / "run").glob("encoded/*/clip-*.safetensors")
        return {path: path.stat().st_mtime_ns for path in found}

    running = start("-c", HELD)
    several.wait_for(running, clips, 120)
    running[1].send_signal(signal.SIGTERM)
    for code, _, errors in several.finish(running, 60):
        assert code == 75 and "stopped by SIGTERM while preparing" in errors, errors
    first = clips()
    assert len(first) == 1
    for code, _, errors in several.finish(start("-m", "jvdm"), 180):
        assert code == 0, errors
    then = clips()
    assert len(then) == CLIPS and {path: then[path] for path in first} == first
    assert (tmp_path / "run/weights/lora.safetensors").is_file()


def test_the_same_name_may_be_another_folder_elsewhere(tmp_path, monkeypatch):
    families = []
    for write in (write_wan, write_ltx):
        place = tmp_path / write.__name__
        place.mkdir()
        write(place / "FOLDER")
        monkeypatch.chdir(place)
        families.append(type(base_of("FOLDER", None).system.model).__name__)
    assert families == ["WanDiT", "LTXDiT"]


def test_ltx_video_is_trained_by_the_command_of_its_recipe(tmp_path, monkeypatch):
    """The loss falls, and the file has the names of Diffusers (`tests/parity/test_lora.py`)."""
    recipe: Any = importlib.import_module("jvdm.configs.families.ltx_lora")
    folder, workdir = write_ltx(tmp_path / "FOLDER"), tmp_path / "work/lora"
    (tmp_path / "videos").mkdir()
    films(tmp_path / "videos", count=9, fps=25.0)
    (command,) = commands(recipe.__doc__, "ltx_lora.py")
    sizes = {"height": 32, "width": 64, "num-frames": 9}
    small = [f"--source.clips.{name}={size}" for name, size in sizes.items()]
    small += ["--objective.rank=2", "--objective.alpha=4", "--optimizer.learning-rate=0.02"]
    small += ["--num-steps=16", "--checkpoint-every=16", "--optimizer.warmup-steps=2"]
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, *small, "--batch-size=4", "--source.batch-size=4"]) == 0
    targets = recipe.config().objective.targets
    objective = LowRankMatching(base=str(folder), rank=2, alpha=4.0, targets=targets)
    fresh, arrays = objective.init(jax.random.key(0)), read_checkpoint(workdir / "checkpoints")[0]
    after = unflatten({name: arrays[f"params/{name}"] for name in flatten(fresh)})
    frozen, batch = objective.frozen(), batch_of(workdir)

    def loss(params, seed):
        call = TrainCall(jnp.int32(0), jax.random.key(seed), {}, frozen)
        return objective.loss(params, batch, call)[0]

    run = jax.jit(loss, compiler_options=QUICK)
    before, now = (np.mean([run(params, seed) for seed in range(8)]) for params in (fresh, after))
    assert now < 0.95 * before, (before, now)
    file = workdir / "weights/lora.safetensors"
    names = {
        name.rpartition(".lora_")[0].partition("transformer_blocks.0.")[2]
        for name in load_stored(file)
    }
    ends = {f"attn{i}.{part}" for i in (1, 2) for part in targets[:4]} | set(targets[4:])
    assert names - {""} == ends
    manifest = manifest_of(folder, [file])
    assert isinstance(manifest, Published)
    assert len(manifest.changes(base_of(str(folder), None).shapes)[0][""]) == 2 * len(ends)
