"""What happens with bad input and failures: one line per situation that users meet.

A row is tried here, or names the tests that try it where a whole run is needed. Left out are
situations of what jvdm does not have: VMEM of kernels and their fall backs, a TPU held by another
process, several caches at once; and options that do not exist, where jvdm refuses with the fix
instead: sizes or frames that are rounded, `duration=`, prompts that are cut, `--debug-nans`.
"""

import ast
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.pipeline import Request
from jvdm.weights import safetensors
from pallas_kernels import dense_attention

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipe():
    return jvdm.load("nano", progress=False)


COMMANDS = {
    "height not divisible": ("generate x --height 100", "multiple of 16; use 96 or 112"),
    "frame count": ("generate x --num-frames 8", "must be 4n + 1 frames|use 5 or 9|5 and 9"),
    "no prompt": ("generate", "there is no prompt; give one"),
    "unknown option": ("generate x --guidence 3", "did you mean --guidance-scale"),
    "spelling of Diffusers": ("generate x --steps 3", "did you mean --num-inference-steps"),
    "unquoted prompt": ("generate a red ball", "quote the prompt"),
    "unknown command": ("generte", "did you mean generate"),
    "unknown weights": ("generate x --weights nanoo", "it has nano, tiny_t2v; did you mean nano?"),
    "missing weights": ("generate x --weights ./no", "no/model.json does not exist"),
    "weights of a hub": ("generate x --weights Wan-AI/Wan2.1", "hf download Wan-AI/Wan2.1"),
    "incompatible options": ("generate x --last-image b.png", "last_image was given without image"),
    "unknown rule": ("generate x --sampling.solver huen", "did you mean heun?"),
    "unknown system": ("generate x --system wav", "wave"),
    "half precision of 16 bits": ("generate x --dtype float16", "float32"),
    "too large a video": ("generate x --height 16384 --width 16384", "the largest that fits"),
    "unwritable output": ("generate x --output /proc/out", "cannot be written"),
    "ending that is not written": ("generate x --output x.mov", "videos are written as .mp4"),
    "missing latents": ("decode no.latents.safetensors", "does not exist"),
    "rate of a decode": ("decode no.latents.safetensors --fps 0", "--fps is 0"),
    "config that is not there": ("train no.py", "no.py"),
    "no config": ("train", "jvdm train needs a config"),
    "no steps": ("train nano --num-steps 0", "--num-steps is 0"),
    "unwritable work directory": (
        "train nano --workdir /proc/run",
        "/proc/run/heartbeat.json cannot be written",
    ),
    "mesh of another number of devices": ("train nano --mesh fsdp=3", "use fsdp="),
    "mesh of several such axes": (
        "generate x --mesh ring=3,sequence=2",
        "use ring=2,sequence=2 or",
    ),
    "axis that training has not": ("train nano --mesh stage=2", "axes are data, fsdp, ring"),
    "axis that there is not": ("generate x --mesh rows=2", "axes are stage, branch, data"),
    "process of no run": ("train nano --process-id 1", "give all three"),
    "coordinator without a port": (
        "train nano --coordinator-address here --num-processes 2 --process-id 0",
        "write HOST:PORT",
    ),
    "plan for no machine": ("plan nano --on v9:2x2", "known are v4, v5e, v5p, v6e, h100, h200"),
    "plan that training cannot carry out": (
        "plan nano --on h200:2 --mesh branch=2",
        "axes are data",
    ),
    "profile for no machine": ("profile wan-tiny --on h20", "did you mean h200 or h100?"),
    "adapter of no published network": (
        "generate x --lora ./no",
        "give --weights a folder of Diffusers",
    ),
    "nothing to inspect": ("inspect ./no", "no"),
    "nothing to export": ("export ./no", "no"),
    "unknown set": ("evaluate --sets Q", "there is no prompt set 'Q'; sets are A: one object"),
    "too large a batch to judge": (
        "evaluate --sets A --num-prompts 1000000 --batch-size 1000000",
        "the largest that fits",
    ),
    "prompts that do not fill batches": (
        "evaluate --num-prompts 10 --batch-size 4",
        "use 8 prompts",
    ),
}


@pytest.mark.parametrize("situation", COMMANDS)
def test_a_command_is_refused_in_one_line(situation, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command, words = COMMANDS[situation]
    assert cli.main(command.split()) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("jvdm: ")]
    assert any(part in line for part in words.split("|")), line
    assert "Traceback" not in shown.err and not shown.out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_long_prompt_is_not_echoed_whole(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "a red ball rests and " * 3000, "--weights", "nano"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the limit is 64" in line and " … " in line and len(line) < 1000


PICTURE, CLIP = np.zeros((64, 64, 3), np.uint8), np.zeros((9, 64, 64, 3), np.uint8)
REQUESTS = {
    "prompt that is None": ({"prompt": None}, "it must be text; use '' for none"),
    "prompt that is too long": (
        {"prompt": "a red ball rests and " * 40},
        "the prompt has 200 tokens; the limit is 64; shorten it; too much is",
    ),
    "prompts and seeds": ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "as many seeds as prompts"),
    "image and video": ({"image": PICTURE, "video": CLIP}, "leave one of them out"),
    "picture of another kind": ({"image": np.zeros((64, 64), complex)}, "image"),
    "one picture too many": ({"image": [PICTURE] * 2}, "image"),
    "noise of another shape": ({"latents": np.zeros((1, 2, 3, 4, 5))}, "leave them out"),
    "number as text": ({"guidance_scale": "much"}, "guidance_scale is 'much'"),
    "level of no process": ({"shift": -1.0}, "shift"),
}


@pytest.mark.parametrize("situation", REQUESTS)
def test_a_request_is_refused_before_anything_is_computed(pipe, situation):
    settings, words = REQUESTS[situation]
    with pytest.raises((jvdm.ConfigError, jvdm.ShapeError)) as caught:
        pipe.prepare(Request(**{"prompt": "a ball", **settings}))
    assert words in str(caught.value)


NOTED = {
    "more frames than trained": ({"num_frames": 17}, "more than the 9 of training"),
    "size that was not trained": ({"height": 32}, "was not trained"),
    "image of another shape": ({"image": np.zeros((64, 96, 3), np.uint8)}, "was cropped"),
    "unknown word": ({"prompt": "a zebra"}, "zebra"),
}


@pytest.mark.parametrize("situation", NOTED)
def test_what_is_done_all_the_same_is_said(pipe, situation):
    settings, words = NOTED[situation]
    job = pipe.prepare(Request(**{"prompt": "a ball", **settings}))
    assert any(words in warning for warning in job.warnings)


def test_no_prompt_at_all_is_allowed(pipe):
    assert not pipe.prepare(Request(prompt="")).warnings


def test_a_setting_of_another_name_is_refused(pipe):
    with pytest.raises(jvdm.ConfigError, match="did you mean guidance_scale"):
        pipe("a ball", guidence=3)


def test_weights_of_another_model_list_what_differs():
    shapes = {"layers": {"kernel": np.zeros((2, 3))}, "norm": np.zeros(3)}
    with pytest.raises(jvdm.WeightsError) as caught:
        safetensors.match(
            "x", {"layers": {"kernel": np.zeros((2, 4))}, "lora": np.zeros(1)}, shapes
        )
    assert all(name in str(caught.value) for name in ("layers", "norm", "lora"))


def test_a_kernel_that_cannot_run_here_says_why():
    x = jnp.ones((1, 4, 1, 8), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="the default device is cpu, not an NVIDIA GPU"):
        dense_attention(x, x, x, implementation="cudnn")


ELSEWHERE = {
    "out of memory while it runs": (
        "generate/test_pipeline.py::test_denoising_that_does_not_fit_says_what_helps",
        "generate/test_pipeline.py::test_decoding_that_does_not_fit_is_done_in_pieces",
        "cli/test_cli.py::test_what_jax_and_the_machine_say_is_one_line",
    ),
    "truncated, pointer or corrupt file": (
        "generate/test_generate.py::test_broken_weights_exit_2",
        "weights/test_damaged.py::test_damaged_headers_are_refused_in_one_line_or_loaded",
    ),
    "file that is not the exported one": (
        "weights/test_damaged.py::test_loading_says_which_file_is_not_the_exported_one",
    ),
    "non-finite weights": ("weights/test_safetensors.py::test_non_finite_tensor_is_named",),
    "NaN while sampling": (
        "generate/test_pipeline.py::test_non_finite_steps_are_named_and_not_decoded",
        "generate/test_pipeline.py::test_non_finite_frames_are_refused",
    ),
    "NaN in training": (
        "training/test_step.py::test_a_step_that_is_not_finite_changes_nothing_and_is_counted",
    ),
    "JAX that does not fit or finds no device": (
        "cli/test_diagnosis.py::test_a_plugin_of_another_version_is_named",
        "cli/test_cli.py::test_a_platform_without_plugin_names_the_doctor_who_names_the_line",
    ),
    "videos that devices cannot share": (
        "generate/test_pipeline.py::test_a_mesh_refuses_a_batch_that_it_cannot_split",
    ),
    "checkpoint that is incomplete": (
        "training/test_resume.py::test_a_damaged_checkpoint_falls_back_to_the_one_before",
        "training/test_resume.py::test_resume_must_names_the_checkpoint_that_cannot_be_read",
    ),
    "checkpoint of another run": (
        "training/test_checkpoint.py::test_a_run_does_not_go_on_as_another_one",
        "training/test_checkpoint.py::test_another_model_is_refused_with_the_difference_of_its_arrays",
    ),
    "full disk": (
        "training/test_resume.py::test_a_full_disk_is_one_line_and_the_run_continues",
        "weights/test_safetensors.py::test_a_full_disk_is_an_error_with_a_name",
        "test_files.py::test_an_interrupted_write_leaves_the_old_file",
    ),
    "preemption": (
        "training/test_resume.py::test_a_signal_saves_and_the_run_continues_bit_identical",
        "training/test_resume.py::test_a_signal_while_compiling_ends_the_run_at_once",
    ),
    "interrupted generation": (
        "generate/test_stopping.py::test_a_signal_while_sampling_saves_the_latents",
        "generate/test_stopping.py::test_a_signal_in_any_stage_ends_the_command",
    ),
    "bad video or caption": (
        "data/test_video_folder.py::test_bad_files_are_listed_with_the_reason_and_the_rest_is_used",
        "data/test_video_folder.py::test_more_bad_files_than_the_limit_is_an_error",
        "data/test_tables.py::test_damaged_tables_are_read_or_refused_in_one_line",
    ),
    "latents of another autoencoder": (
        "generate/test_generate.py::test_decode_refuses_latents_of_another_autoencoder",
        "training/test_own_videos.py::test_an_autoencoder_that_is_not_that_of_the_latents_is_refused",
    ),
    "plan that does not fit": (
        "cli/test_plan.py::test_what_does_not_fit_ends_with_2_and_the_axis_to_change",
        "cli/test_plan.py::test_what_the_compiler_has_no_room_for_ends_with_the_axis_and_what_is_left",
    ),
    "one of several processes is missing, late or lost": (
        "parallel/test_peers.py::test_missing_ones_are_named_in_all_that_came",
        "parallel/test_peers.py::test_a_missing_first_one_is_named",
        "parallel/test_peers.py::test_a_failure_and_a_lost_process_end_the_others",
    ),
    "coordinator on loopback": (
        "parallel/test_peers.py::test_a_coordinator_on_loopback_is_refused_for_several_hosts",
    ),
    "heads and tokens that a mesh does not divide": (
        "parallel/test_attention.py::test_a_ring_attends_to_what_one_device_does",
        "parallel/test_everywhere.py::test_meshes_compute_what_one_device_does",
    ),
    "slow work directory": ("training/test_checkpoint.py::test_a_slow_disk_is_told",),
    "adapter that matches nothing": (
        "weights/test_lora.py::test_what_does_not_fit_is_named",
        "weights/test_adapters.py::test_what_says_no_network_is_refused",
    ),
    "export that would fail at the end": (
        "training/test_own_videos.py::test_a_part_that_this_jvdm_cannot_build_is_refused",
    ),
}


@pytest.mark.parametrize("situation", ELSEWHERE)
def test_what_needs_a_whole_run_is_tried_elsewhere(situation):
    assert ELSEWHERE[situation]
    for place in ELSEWHERE[situation]:
        path, name = place.split("::")
        tree = ast.parse((TESTS / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
