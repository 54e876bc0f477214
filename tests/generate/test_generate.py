"""`jvdm generate` and `jvdm decode`: which files they leave, and that records make them again."""

import json
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import jvdm
from jvdm import cli, decode, generate, outputs
from jvdm import record as records
from jvdm.decode import DecodeOptions
from jvdm.generate import GenerateOptions
from jvdm.pipeline import Pipeline
from jvdm.stopping import StopRequest
from jvdm.video import Video, read_video, write_image
from tests.generate import nano

PROMPT = "a large red ball rolls to the left"
RECORD_BEFORE_SYSTEMS = Path(__file__).with_name("record_before_systems.json")
STEM = "a_large_red_ball_rolls_to_the_left"


@pytest.fixture
def make(weights, tmp_path):
    """Runs `jvdm generate` into `tmp_path` and returns the records of its videos."""

    def run(prompt=PROMPT, **options):
        options = {"seed": 0, "weights": str(weights), "output": tmp_path} | options
        return generate.run(GenerateOptions(prompt, **options))["videos"]

    return run


def contents(record, *kinds):
    return [Path(record["outputs"][kind]).read_bytes() for kind in kinds or ("video", "sheet")]


def path_of(record, kind="record"):
    return Path(record["outputs"][kind])


def test_a_run_leaves_video_sheet_latents_and_record(make, tmp_path):
    (record,) = make(seed=7)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{STEM}_7{suffix}" for suffix in outputs.SUFFIXES}
    assert read_video(tmp_path / f"{STEM}_7.mp4").frames.shape == (9, 16, 32, 3)
    written = json.loads((tmp_path / f"{STEM}_7.json").read_text())
    assert written == json.loads(json.dumps(record))
    assert written["settings"]["seed"] == 7
    assert written["status"] == "done"
    assert {"latents", "frames"} == written["sha256"].keys()


def test_the_files_hold_what_the_pipeline_makes(make, pipe):
    (record,) = make()
    assert record["sha256"]["frames"] == pipe(PROMPT, seed=0, progress=False).digest()


def test_nothing_is_overwritten(make, tmp_path):
    (first,), (second,) = make(), make()
    assert second["outputs"]["video"].endswith("_0-2.mp4")
    assert contents(first) == contents(second)


def test_a_file_name_may_be_given(make, tmp_path):
    (record,) = make(output=tmp_path / "new" / "ball.mp4")
    assert record["outputs"]["video"] == str(tmp_path / "new" / "ball.mp4")
    one, two = make(output=tmp_path / "new" / "two.mp4", num_videos=2)
    assert [r["outputs"]["video"][-9:] for r in (one, two)] == ["two_0.mp4", "two_1.mp4"]


@pytest.mark.parametrize("ending", [".gif", ".webm", ".MP4"])
def test_the_ending_of_the_name_says_the_format(make, tmp_path, ending):
    (record,) = make(output=tmp_path / f"ball{ending}")
    assert record["outputs"]["video"] == str(tmp_path / f"ball{ending}")
    assert read_video(tmp_path / f"ball{ending}").frames.shape == (9, 16, 32, 3)
    (latents,) = tmp_path.glob("*.safetensors")
    (again,) = decode.run(DecodeOptions(latents, output=tmp_path / f"again{ending}"))["videos"]
    assert contents(again) == contents(record)


def test_runs_of_one_folder_that_overlap_leave_two_sets_of_files(make, monkeypatch, tmp_path):
    """The second run begins while the first one, which has no files yet, denoises."""
    advance, inner = Pipeline.advance, []

    def overlapped(self, *arguments, **options):
        if not inner:
            inner.append(None)
            inner[0] = make()
        return advance(self, *arguments, **options)

    monkeypatch.setattr(Pipeline, "advance", overlapped)
    (outer,), ((other,),) = make(), inner
    assert outer["outputs"]["video"].endswith("_0.mp4")
    assert other["outputs"]["video"].endswith("_0-2.mp4")
    assert len(list(tmp_path.iterdir())) == 2 * len(outputs.SUFFIXES)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_how_a_picture_fits_is_recorded_and_repeated(make, tmp_path, fit):
    rng = np.random.default_rng(0)
    image = write_image(tmp_path / "in.png", rng.integers(0, 256, (40, 20, 3)).astype(np.uint8))
    (made,) = make(image=image, fit=fit)
    assert made["settings"]["fit"] == fit
    (again,) = make(None, seed=None, weights=None, like=path_of(made))
    assert contents(again) == contents(made) and again["settings"] == made["settings"]
    (usual,) = make(image=image)
    assert (contents(usual) == contents(made)) == (fit == "crop")


def test_several_videos_have_consecutive_seeds(make):
    made = make(num_videos=2, seed=5)
    assert [record["outputs"]["video"][-6:] for record in made] == ["_5.mp4", "_6.mp4"]
    assert contents(made[0]) != contents(made[1])


def test_a_drawn_seed_is_in_the_name_and_in_the_record(make):
    (record,) = make(seed=None)
    assert record["outputs"]["video"].endswith(f"_{record['settings']['seed']}.mp4")


def test_a_record_makes_the_same_file_again(make, tmp_path):
    (first,) = make(seed=3, num_inference_steps=2, guidance_scale=4.0, negative_prompt="a box")
    (again,) = make(None, seed=None, weights=None, like=path_of(first))
    assert again["outputs"]["video"] != first["outputs"]["video"]
    assert contents(again) == contents(first)
    assert again["settings"] == first["settings"]


def test_a_record_of_one_video_of_a_batch_makes_that_one(make):
    made = make(num_videos=3, seed=5)
    again = make(None, seed=None, weights=None, like=path_of(made[1]))
    assert len(again) == 1
    assert contents(again[0]) == contents(made[1])


def test_options_beside_a_record_change_it(make):
    (first,) = make(seed=3)
    (other,) = make(None, weights=None, seed=4, like=path_of(first))
    assert (other["settings"]["prompt"], other["settings"]["seed"]) == (PROMPT, 4)
    assert contents(other) != contents(first)


def test_a_record_from_before_systems_is_made_again(make):
    record = records.read(RECORD_BEFORE_SYSTEMS)
    assert record.system == {}
    (again,) = make(None, seed=None, weights=None, like=RECORD_BEFORE_SYSTEMS)
    settings = {name: again["settings"][name] for name in record.settings}
    assert settings == record.settings
    assert again["system"]["sampling"]["guidance"]["scale"] == 2.5
    frames = read_video(path_of(again, "video")).frames
    assert frames.shape == (9, 64, 64, 3)


def test_a_record_with_pictures_reads_them_again(make, tmp_path):
    rng = np.random.default_rng(0)
    image = write_image(tmp_path / "in.png", rng.integers(0, 256, (16, 32, 3)).astype(np.uint8))
    (first,) = make(image=image, last_image=image)
    (again,) = make(None, seed=None, weights=None, like=path_of(first))
    assert contents(again) == contents(first)
    write_image(image, np.zeros((16, 32, 3), np.uint8))
    with pytest.raises(jvdm.ConfigError, match="in.png has changed since the record"):
        make(None, seed=None, weights=None, like=path_of(first))
    image.unlink()
    with pytest.raises(jvdm.ConfigError, match="in.png does not exist.*restore it"):
        make(None, seed=None, weights=None, like=path_of(first))


def test_a_record_refuses_other_weights(make, tmp_path, weights):
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in weights.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (first,) = make(weights=str(folder))
    nano.write_vae(folder, seed=1)
    with pytest.raises(jvdm.ConfigError, match="made with another vae.safetensors"):
        make(None, seed=None, weights=None, like=path_of(first))


def test_a_record_of_another_device_warns(make, capsys):
    (first,) = make()
    path = Path(first["outputs"]["record"])
    content = json.loads(path.read_text())
    content["device"]["kind"] = "TPU v9"
    path.write_text(json.dumps(content))
    make(None, seed=None, weights=None, like=path)
    assert "made with device TPU v9, this is cpu: rounding may differ" in capsys.readouterr().err


def test_latents_are_on_disk_before_decoding_starts(make, monkeypatch, tmp_path, capsys):
    def no_memory(*_):
        raise jvdm.DeviceMemoryError("too large")

    monkeypatch.setattr(Pipeline, "decode", no_memory)
    with pytest.raises(jvdm.DeviceMemoryError):
        make()
    (path,) = tmp_path.iterdir()
    assert path.name == f"{STEM}_0.latents.safetensors"
    assert f"finish the video with jvdm decode {path}" in capsys.readouterr().err
    assert outputs.load_latents(path)[1].status == "latents"


def test_decode_finishes_what_latents_only_began(make, tmp_path):
    (direct,) = make()
    (halfway,) = make(latents_only=True, output=tmp_path / "half")
    assert sorted(halfway["outputs"]) == ["latents", "record"]
    assert halfway["status"] == "latents"
    (done,) = decode.run(DecodeOptions(path_of(halfway, "latents")))["videos"]
    assert contents(done) == contents(direct)
    assert done["sha256"] == direct["sha256"]
    assert done["outputs"]["record"] == halfway["outputs"]["record"]
    assert records.read(done["outputs"]["record"]).status == "done"
    (again,) = make(None, seed=None, weights=None, like=path_of(done))
    assert contents(again) == contents(direct)


def test_decode_does_not_overwrite_and_takes_another_rate(make, tmp_path):
    (direct,) = make()
    latents = path_of(direct, "latents")
    (other,) = decode.run(DecodeOptions(latents, fps=6.0))["videos"]
    assert other["outputs"]["video"].endswith("_0-2.mp4")
    assert read_video(other["outputs"]["video"]).fps == 6.0
    (named,) = decode.run(DecodeOptions(latents, output=tmp_path / "x" / "y.mp4"))["videos"]
    assert named["outputs"]["video"] == str(tmp_path / "x" / "y.mp4")


def test_decode_refuses_latents_of_another_autoencoder(make, tmp_path, weights):
    (made,) = make(latents_only=True)
    folder = nano.write_weights(tmp_path / "weights")
    nano.write_vae(folder, seed=1)
    with pytest.raises(jvdm.ConfigError, match="made with another autoencoder"):
        decode.run(DecodeOptions(path_of(made, "latents"), weights=str(folder)))


def test_decode_refuses_other_files(weights):
    with pytest.raises(jvdm.WeightsError, match="vae.safetensors holds no latents"):
        decode.run(DecodeOptions(weights / "vae.safetensors"))


def test_ctrl_c_saves_what_is_there(make, monkeypatch, tmp_path, capsys):
    advance = Pipeline.advance

    def interrupted(self, run, num_rows=None, callback=None):
        assert callback is not None

        def press(row, latents):
            if row == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return callback(row, latents)

        return advance(self, run, num_rows, press)

    monkeypatch.setattr(Pipeline, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{STEM}_0.latents.safetensors", f"{STEM}_0.json"}
    assert records.read(tmp_path / f"{STEM}_0.json").status == "interrupted"
    path = tmp_path / f"{STEM}_0.latents.safetensors"
    latents, record = outputs.load_latents(path)
    assert latents.shape == (3, 2, 4, 4) and record.status == "interrupted"
    assert f"stopped after 2 of 3 steps; see what is there with jvdm decode {path}" in (
        capsys.readouterr().err
    )
    (shown,) = decode.run(DecodeOptions(path))["videos"]
    assert shown["status"] == "interrupted"
    assert "is unfinished: the run was stopped after 2 of 3 steps" in capsys.readouterr().err
    assert records.read(tmp_path / f"{STEM}_0.json").status == "interrupted"


def test_ctrl_c_after_the_last_step_leaves_a_video_that_can_be_finished(
    make, monkeypatch, tmp_path, capsys
):
    (direct,) = make(output=tmp_path / "direct")
    advance = Pipeline.advance

    def late(self, *arguments, **options):
        end = advance(self, *arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return end

    monkeypatch.setattr(Pipeline, "advance", late)
    with pytest.raises(KeyboardInterrupt):
        make()
    path = tmp_path / f"{STEM}_0.latents.safetensors"
    assert f"finish the video with jvdm decode {path}" in capsys.readouterr().err
    (done,) = decode.run(DecodeOptions(path))["videos"]
    assert done["status"] == "done" and contents(done) == contents(direct)


def test_the_first_ctrl_c_is_a_request_and_the_second_an_interruption():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop, stop.later():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_have_no_signals():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_table_of_times_and_the_paths_are_shown(weights, tmp_path, capsys):
    arguments = ["generate", PROMPT, "--weights", str(weights), "--output", str(tmp_path)]
    assert cli.main([*arguments, "--seed", "0"]) == 0
    shown = capsys.readouterr()
    for stage in ("load", "compile", "text", "denoise", "decode", "total"):
        assert f"{stage}  " in shown.out
    for suffix in outputs.SUFFIXES:
        assert f"{STEM}_0{suffix}" in shown.out
    for stage in ("load", "compile", "denoise", "decode"):
        assert f"{stage}:" in shown.err


def test_json_is_the_record(weights, tmp_path, capsys):
    arguments = ["generate", PROMPT, "--weights", str(weights), "--output", str(tmp_path), "--json"]
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["videos"][0]["settings"]["prompt"] == PROMPT
    assert result["seconds"]["denoise"] > 0


def damaged(weights, folder, name, content):
    """A copy of the weights with one file replaced, or removed if `content` is None."""
    folder.mkdir()
    for path in weights.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content((folder / name).read_bytes()))
    return str(folder)


def not_a_number(content):
    return content[:-4] + np.float32(np.nan).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--height", "100"], "height is 100; it must be a multiple of 16; use 96 or 112"),
        (["--num-frames", "8"], r"num_frames is 8; it must be 4n \+ 1.* 5 and 9"),
        (["--num-inference-steps", "0"], "num_inference_steps is 0"),
        (["--num-videos", "0"], "--num-videos is 0"),
        (["--seed", "-5"], "the seed is -5"),
        (["--image", "no.png"], "no.png does not exist"),
        (["--last-image", "no.png"], "last_image was given without image"),
        (["--video", "no.mp4"], "no.mp4 does not exist"),
        (["--like", "no.json"], "record no.json does not exist"),
        (["--weights", "huge"], "no weights called 'huge'"),
        (["--weights", "./nowhere"], "nowhere/model.json does not exist"),
        (["--output", "/proc/out"], "/proc/out.* cannot be written"),
        (["--output", "/tmp/x.mov"], "--output ends in .mov; videos are written as .mp4, .webm"),
        (["--output", "x" * 300 + ".mp4"], "has 300 bytes; names of 200"),
        (["--output", "x" * 300], "x{300}.* cannot be written; File name too long"),
        (["--fps", "0.5"], "fps is 0.5; it must be a positive number from 1 to 240"),
    ],
)
def test_bad_input_exits_2_with_one_line(weights, tmp_path, capsys, arguments, message):
    options = ["--weights", str(weights), "--output", str(tmp_path)]
    refused(["generate", PROMPT, *options, *arguments], message, capsys)
    assert not list(tmp_path.iterdir())


def refused(arguments, message, capsys):
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("jvdm: ")]
    assert re.search(message, line), line
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_no_prompt_exits_2(weights, capsys):
    refused(["generate", "--weights", str(weights)], "there is no prompt; give one", capsys)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "model.safetensors does not exist"),
        ("vae.safetensors", lambda content: content[:-50], "vae.safetensors is truncated"),
        ("model.safetensors", lambda _: b"version https://git-lfs.github.com", "git-lfs pointer"),
        ("vae.safetensors", lambda _: b"\0" * 64, "vae.safetensors is corrupt"),
        ("model.safetensors", not_a_number, "tensor .* has 1 non-finite values"),
        ("model.json", lambda _: b"{}", "model.json is not a manifest"),
        ("model.json", lambda text: text.replace(b'"width": 32', b'"width": 48'), "another model"),
        ("model.json", lambda text: text.replace(b'"depth"', b'"dept"'), "cannot build"),
        (
            "model.json",
            lambda text: text.replace(b'"text": {', b'"t": {'),
            "hold vae, model, t; a text is needed",
        ),
    ],
)
def test_broken_weights_exit_2(weights, tmp_path, capsys, name, content, message):
    folder = damaged(weights, tmp_path / "weights", name, content)
    arguments = ["generate", PROMPT, "--weights", folder, "--output", str(tmp_path / "out")]
    refused(arguments, message, capsys)


def test_an_unknown_flag_exits_2_and_names_the_nearest(weights, capsys):
    assert cli.main(["generate", PROMPT, "--num-frame", "9"]) == 2
    shown = capsys.readouterr()
    assert "--num-frames" in shown.err + shown.out


def test_warnings_do_not_stop_a_run(weights, tmp_path, capsys):
    picture = write_image(tmp_path / "in.png", np.zeros((50, 50, 3), np.uint8))
    options = ["--weights", str(weights), "--output", str(tmp_path), "--num-frames", "13"]
    arguments = ["generate", "a red zebra", *options, "--image", str(picture), "--seed", "0"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().err
    for message in ("'zebra'", "13 frames are more than the 9", "image of 50x50"):
        assert message in shown
    assert len(records.read(tmp_path / "a_red_zebra_0.json").warnings) == 3


def test_a_video_is_continued_from_its_file(make, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 32, 3)).astype(np.uint8)
    path = Video(frames, 12.0).save(tmp_path / "in.mp4")
    (record,) = make(video=path)
    assert record["settings"]["inputs"].keys() == {"video"}
    assert read_video(record["outputs"]["video"]).frames.shape == (9, 16, 32, 3)


@pytest.mark.parametrize("at", ["0.45s", "end"])
def test_what_is_before_and_after_a_video_is_made(make, weights, tmp_path, at):
    """From the command line, and again from the record."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 32, 3)).astype(np.uint8)
    path = Video(frames, 12.0).save(tmp_path / "in.mp4")
    arguments = ["generate", PROMPT, "--weights", str(weights), "--output", str(tmp_path)]
    given = ["--seed", "0", "--video", str(path), "--video-at", at, "--num-frames", "13"]
    assert cli.main([*arguments, *given]) == 0
    (made,) = tmp_path.glob(f"{STEM}*.json")
    record = records.read(made)
    assert record.settings["video_at"] == at and record.settings["inputs"].keys() == {"video"}
    (again,) = make(None, seed=None, weights=None, like=made)
    assert contents(again, "video") == [made.with_suffix(".mp4").read_bytes()]
