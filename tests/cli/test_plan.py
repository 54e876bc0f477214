"""`jvdm plan`: programs for devices that are not there, and what they need."""

import importlib.util
import json
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from jvdm import works
from jvdm.cli import main
from jvdm.configs import nfd, streamdit
from jvdm.data.video_folder import VideoFolder
from jvdm.errors import ConfigError, DeviceMemoryError
from jvdm.families import FAMILIES
from jvdm.parallel import data_mesh
from jvdm.plan import PlanOptions, run, text
from jvdm.recipes import load_experiment
from jvdm.targets import LIBTPU, MACHINES, target
from jvdm.training.encoded_clips import Captions, EncodedClips
from jvdm.training.export import export
from jvdm.training.low_rank import LowRankMatching
from jvdm.weights.diffusers import write_tensors
from jvdm.weights.folder import find
from tests.data.test_video_folder import caption, write
from tests.parallel import several
from tests.training.test_lora import films
from tests.weights.ltx_folder import write_ltx
from tests.weights.wan_folder import write_wan

needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="needs the wheel libtpu (pip install libtpu)"
)


@pytest.fixture(autouse=True)
def libtpu_beside_other_processes(monkeypatch):
    for name, value in {**LIBTPU, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        monkeypatch.setenv(name, value)


def plan(config, on, mesh="auto", work: Any = "auto"):
    return run(PlanOptions(config, on, mesh, work))


def first(config, on, mesh="auto"):
    """Bytes of a device, and the rest that is said, of the first program."""
    (one, *_) = plan(config, on, mesh)["programs"]
    return one["bytes_per_device"], one


@needs_libtpu
def test_a_network_is_compiled_for_tpus_that_are_not_there():
    found = plan("wan-tiny", "v5e:2x4", "ring=2,sequence=4")
    (one,) = found["programs"]
    sizes, moved = one["bytes_per_device"], one["sent_per_device"]
    whole = first("wan-tiny", "h200:1")[0]["parameters"]
    assert sizes["parameters"] == whole
    assert sizes["peak"] == sum(sizes.values()) - sizes["peak"] - sizes["limit"]
    assert {"all-to-all", "collective-permute"} <= set(moved)
    # Two layers trade queries, keys, values and results: 12 tokens are 16, two on a chip, and two
    # heads of 12 numbers are four.
    assert moved["all-to-all"] == 2 * 4 * (2 * 4 * 12 * 2) * 3 // 4
    assert "v5e:2x4" in text(found)


def test_parameters_and_optimizer_of_training_are_split():
    four = first("nano", "h200x4", "fsdp=2,tensor=2")[0]
    objective = load_experiment("nano").objective
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 0.25 * whole < four["parameters"] < 0.45 * whole
    # An average of the parameters, and one or two numbers of the optimizer for each.
    assert 0.5 * whole < four["optimizer"] < 3 * 0.45 * whole


def test_a_gpu_is_planned_without_a_compiler_and_says_so():
    one, two = (plan("wan-14b-480p", f"h200:{n}", mesh) for n, mesh in ((1, "auto"), (2, "fsdp")))
    assert "not compiled" in one["how"]
    (one,), (two,) = (found["programs"] for found in (one, two))
    parameters = [found["bytes_per_device"]["parameters"] for found in (one, two)]
    assert parameters[0] == pytest.approx(2 * 14.29e9, rel=0.01)  # published: 14 billion
    assert parameters[1] == pytest.approx(parameters[0] / 2, rel=0.01)
    # 40 layers, by token: six products of the width, two of the feed-forward part, attention to
    # all tokens and to 512 states of the prompt.
    layer = 2 * 6 * 5120**2 + 2 * 2 * 5120 * 13824 + 4 * 5120 * (32760 + 512)
    assert one["flops"] == pytest.approx(40 * 32760 * layer, rel=0.01)
    time = one["seconds"]["products"]
    np.testing.assert_allclose(time, one["flops"] / MACHINES["h200"].flops)
    assert "assumed: 989 TFLOP/s" in one["assumed"] and "at 4800 GB/s" in one["assumed"]


def test_activations_and_what_is_sent_have_lines_of_their_own():
    """Layers are computed again: a layer leaves its input, of all tokens, in 16 bits.

    Of one, which is computed again, all that its products read and write is there at once.
    """
    found = {}
    for mesh in ("data=2", "fsdp=2", "sequence=2"):
        (one,) = plan("wan-1.3b-480p", "h200x2", mesh, "step")["programs"]
        sizes = one["bytes_per_device"]
        assert sizes["peak"] == sum(sizes.values()) - sizes["peak"] - sizes["limit"]
        found[mesh] = sizes["activations"], one["sent_per_device"]
    one, wide = 32760 * 1536 * 2, 32760 * 8960 * 2
    kept, sent = zip(*found.values(), strict=True)
    assert 30 * one + 10 * one + 2 * wide < kept[0] == kept[1] < 30 * one + 20 * one + 2 * wide
    assert kept[2] == pytest.approx(kept[0] / 2, rel=0.2)
    numbers = 1.42e9  # of the network
    assert sent[0].keys() == {"all-reduce"} and "reduce-scatter" not in sent[2]
    assert sent[0]["all-reduce"] == pytest.approx(2 * numbers, rel=0.02)
    assert sent[1]["all-gather"] == pytest.approx(2 * numbers, rel=0.02)
    assert sent[1]["reduce-scatter"] == pytest.approx(numbers, rel=0.02)
    # Queries, keys, values and results: forward, again, and their gradients.
    assert sent[2]["all-to-all"] == 3 * 30 * 4 * (16380 * 1536 * 2) // 2


def test_what_does_not_fit_ends_with_2_and_the_axis_to_change(capsys, monkeypatch):
    monkeypatch.setitem(MACHINES, "h200", MACHINES["h200"]._replace(memory=20e9))
    assert main(["plan", "wan-14b-480p", "--on", "h200:2", "--mesh", "sequence", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == DeviceMemoryError.__name__
    assert "parameters 28.6" in error["what"] and "20.0 GB" in error["why"]
    assert error["fix"].startswith("fsdp=2 halves what parameters take")


def test_what_the_compiler_has_no_room_for_ends_with_the_axis_and_what_is_left(monkeypatch):
    """What libtpu said of a step of tiny_t2v_4step on v5e:1x1."""
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    said += "temporaries (18.33G) exceeds available HBM (15.75G). HLO module: jit_work."

    def refused(*arguments):
        raise jax.errors.JaxRuntimeError(said)

    step = works.step_of_config
    monkeypatch.setattr(works, "step_of_config", lambda *given: step(*given)._replace(run=refused))
    with pytest.raises(DeviceMemoryError, match=r"18.33G.*sequence=2 halves .*about 9.8 GB"):
        plan("nano", "cpu")


@pytest.mark.parametrize(
    ("config", "on", "mesh", "said"),
    [
        ("nano", "v9:2x2", "auto", "known are v4, v5e"),
        ("nano", "v5e", "auto", "v5e:2x4"),
        ("nano", "h200:3", "fsdp=2", "use fsdp=3"),
        ("nano", "h200x3", "fsdp", "multiple of 3"),
        ("nanu", "h200", "auto", "nano"),
    ],
)
def test_what_cannot_be_planned_is_refused(config, on, mesh, said):
    with pytest.raises(ConfigError, match=said):
        plan(config, on, mesh)


@pytest.mark.parametrize(
    ("on", "bounds"),
    [("v5e:1x1", [1, 1, 1]), ("v5e:1x4", [1, 2, 1]), ("v5p:2x2x2", None), ("v6e:2x4", None)],
)
def test_less_than_a_host_is_a_part_of_one(monkeypatch, on, bounds):
    """libtpu takes hosts of 2 x 2 chips, and refuses what they do not divide."""
    asked = {}

    def described(name, platform, **given):
        asked.update(given)
        return SimpleNamespace(devices=jax.devices()[:1])

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    target(on, "auto")
    assert asked.get("chips_per_host_bounds") == bounds


def test_a_video_is_planned_from_prompt_to_frames():
    """All networks stay in memory; what else there is belongs to one program at a time."""
    found = plan("wan-1.3b-480p", "h200x2", "tensor=2", "video")
    text_, row, decoder = found["programs"]
    held = [one["bytes_per_device"]["parameters"] for one in found["programs"]]
    # UMT5-XXL and Wan 1.3B have 5.68 and 1.42 billion parameters; most are split.
    assert held[0] == pytest.approx(2 * 5.68e9 / 2, rel=0.3)
    assert held[1] == pytest.approx(2 * 1.42e9 / 2, rel=0.1)
    for one in found["programs"]:
        sizes = one["bytes_per_device"]
        assert sizes["peak"] == sum(held) + sum(
            size
            for name, size in sizes.items()
            if name not in ("parameters", "other networks", "peak", "limit")
        )
    assert found["peak"] == max(one["bytes_per_device"]["peak"] for one in found["programs"])
    # Two branches of guidance in every row, of a call as it is planned alone.
    (call,) = plan("wan-1.3b-480p", "h200")["programs"]
    assert row["times"] == 50
    assert row["flops"] == pytest.approx(2 * 50 * call["flops"], rel=0.01)
    times = [one["times"] * max(one["seconds"].values()) for one in found["programs"]]
    assert found["seconds"] == pytest.approx(sum(times))
    assert "50 times" in text(found)
    with pytest.raises(ConfigError, match="use branch=2"):
        plan("wan-tiny", "h200x8", "branch=8", "video")


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A folder in which the runs that others begin with were made, and a video of one's own lies.

    Their weights are those of the shipped model, or zeros; a plan reads shapes.
    """
    pytest.importorskip("grain")
    for name in ("vae", "tiny_t2v"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "weights").symlink_to(find("tiny_t2v"))
    for recipe in (nfd.config(), streamdit.config()):
        shapes = jax.eval_shape(recipe.objective.init, jax.random.key(0))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        weights = tmp_path / "work" / recipe.name / "weights"
        export(recipe.objective, recipe.package, weights, zeros)
    caption(write(tmp_path / "videos/one.mp4", 30, rate=6, height=64, width=64))
    at_size(write_wan(tmp_path / "Wan2.1-T2V-1.3B-Diffusers"), "wan-1.3b-480p")
    at_size(write_ltx(tmp_path / "LTX-Video"), "ltx-2b-512p")
    monkeypatch.chdir(tmp_path)


def at_size(folder, name):
    """Makes the folder of a small network say what that of a published one says."""
    family = FAMILIES[name]
    parts = {"transformer": family.transformer, "vae": family.vae}
    for part, fields in (parts | {"text_encoder": works._TEXTS[family.pipeline]}).items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    channels, path = family.latents[-1], folder / "vae/config.json"
    statistics = {name: [1.0] * channels for name in ("latents_mean", "latents_std")}
    if family.pipeline == "WanPipeline":
        path.write_text(json.dumps(json.loads(path.read_text()) | statistics))
    else:
        arrays = {name: np.array(one, np.float32) for name, one in statistics.items()}
        write_tensors(folder / "vae", arrays, "diffusion_pytorch_model")


@pytest.mark.slow
@pytest.mark.usefixtures("begun")
def test_configs_need_on_their_device_what_their_headers_say(root):
    """All that train. Counted, not compiled: arrays, and the largest product."""
    line = re.compile(r"^jvdm plan (\S+) --on (\S+) +([\d.]+) GB", re.MULTILINE)
    paths = {
        str(path.relative_to(root / "configs"))[:-3]: path for path in root.glob("configs/**/*.py")
    }
    texts = {name: path.read_text() for name, path in paths.items()}
    said = {name: line.findall(text) for name, text in texts.items() if "def config(" in text}
    assert {"nano", "families/wan_lora", "families/ltx_lora"} < said.keys()
    for config, lines in said.items():
        assert [name for name, _, _ in lines] == [config], f"configs/{config}.py has no plan"
        ((_, on, needed),) = lines
        assert plan(config, on)["peak"] / 1e9 == pytest.approx(float(needed), abs=0.006), config


@pytest.mark.slow
def test_low_rank_changes_are_planned_with_the_batches_and_weights_of_the_run(tmp_path):
    """No clip is encoded and no weight read; shapes and number types are those of the run."""
    films(tmp_path, 5)
    clips = VideoFolder(tmp_path, Captions(), height=32, width=64, num_frames=5, fps=16.0)
    objective = LowRankMatching(str(write_wan(tmp_path / "FOLDER")), dtype="bfloat16")
    source = EncodedClips(clips, batch_size=2, workdir=tmp_path).encoded_for(objective)

    def said(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    drawn, _ = source.draw(source.start(0, None, data_mesh(1)), jnp.int32(0), 2)
    assert said(works._encoded(source)) == said(drawn)
    assert said(works._frozen(objective)) == said(objective.frozen())
    others = EncodedClips(several.Clips(), 2, base=objective.base)
    with pytest.raises(ConfigError, match="sizes of the clips of a Clips.*VideoFolder"):
        works._encoded(others)


@needs_libtpu
def test_a_small_network_makes_videos_on_one_chip():
    found = plan("wan-tiny", "v5e:1x1", work="video")
    assert found["how"].startswith("compiled") and 0 < found["peak"] < 1e9
    assert not any(one["sent_per_device"] for one in found["programs"])
