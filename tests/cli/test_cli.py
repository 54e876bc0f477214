"""The command line: how options reach a verb, and how every kind of ending is reported."""

import dataclasses
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, Literal

import pytest

import jvdm
from jvdm import cli
from jvdm.errors import ConfigError, Preempted


@dataclasses.dataclass(frozen=True)
class PlayOptions:
    """How a song is played."""

    song: str = "a song"
    """What is played."""
    volume: int = 3
    """How loud."""
    mood: Literal["calm", "wild"] = "calm"


@pytest.fixture
def play(monkeypatch):
    """Adds the verb `play`; tests replace `play.run`."""
    module = types.ModuleType("jvdm_play")
    module.__dict__.update(
        PlayOptions=PlayOptions,
        run=lambda options: {"song": options.song, "volume": options.volume},
        text=lambda result: f"played {result['song']} at {result['volume']}",
    )
    monkeypatch.setitem(sys.modules, "jvdm_play", module)
    verb = cli.Verb("jvdm_play", "PlayOptions", ("song",), "play a song", compiles=False)
    monkeypatch.setitem(cli.VERBS, "play", verb)
    return module


CONFIG = """
import dataclasses
from jvdm.configs import nano

def config():
    return dataclasses.replace(nano.config(), name="mine")
"""


@pytest.fixture
def trained(monkeypatch):
    """Lets `jvdm train` give back what it was asked to do."""
    calls = []

    def run(options, experiment):
        calls.append((options, experiment))
        return {"name": experiment.name}

    monkeypatch.setattr("jvdm.train.run", run)
    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: None)
    return calls


def test_options_reach_the_verb_and_people_read_text(play, capsys):
    assert cli.main(["play", "Help!", "--volume", "7"]) == 0
    assert capsys.readouterr().out == "played Help! at 7\n"


def test_json_is_the_result(play, capsys):
    assert cli.main(["play", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"song": "a song", "volume": 3}


def test_help_of_a_verb_lists_its_options_with_their_texts(play, capsys):
    assert cli.main(["play", "--help"]) == 0
    out = capsys.readouterr().out
    for part in ("[SONG]", "--volume INT", "How loud.", "{calm,wild}", "--json"):
        assert part in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["play", "--volum", "7"], "--volume"),
        (["play", "--volume", "loud"], "volume"),
        (["play", "--mood", "sad"], "calm"),
        (["plai"], "did you mean play or plan?"),
        (["zzz"], "known are"),
        ([], "usage: jvdm"),
    ],
)
def test_wrong_usage_says_what_is_right(play, capsys, arguments, message):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "ball", "--height", "128"], "'ball' is left over; .*; quote the prompt"),
        (["ball", "--sampling.policy.packed", "2", "16"], "'16' is left over; .* commas, as 2,2,3"),
        (["a", "--num-frame", "9"], "no option --num-frame; did you mean --num-frames"),
        (["a", "--cfg_scale", "3"], "did you mean --guidance-scale"),
        (["a", "--num_videos_per_prompt=2"], "--num_videos_per_prompt; did you mean --num-videos"),
        (["a", "--steps", "3"], r"did you mean --num-inference-steps\?"),
        (["a", "--height", "many"], r"--height is \['many'\]; it must be INT"),
        (["x " * 5000], r"^jvdm: .{0,900}$"),
    ],
)
def test_what_is_wrong_is_one_line_and_json_if_wanted(capsys, arguments, message):
    assert cli.main(["generate", *arguments, "--json"]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("jvdm: ")]
    assert re.search(message, line), line
    error = json.loads(printed.out)["error"]
    assert error["what"] in line and error["fix"] in line


@pytest.mark.parametrize("wanted", [True, False])
def test_help_has_no_colour_where_none_is_wanted(play, capsys, monkeypatch, wanted):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "" if wanted else "1")
    assert cli.main(["play", "--help"]) == 0
    assert ("\x1b[" in capsys.readouterr().out) == wanted


def test_help_shows_the_defaults_of_the_shipped_model(capsys, monkeypatch):
    assert cli.main(["generate", "--help"]) == 0
    shown = " ".join(re.sub(r"[\u2500-\u257f]+", " ", capsys.readouterr().out).split())
    assert "None" not in shown and "[PROMPT]" in shown
    for flag, default in {
        "--num-frames INT": "33",
        "--guidance-scale FLOAT": "2.4",
        "--guidance-scale-2 FLOAT": "2.8",
        "--num-inference-steps INT": "16",
        "--weights STR": "tiny_t2v",
        "--seed INT": "drawn",
        "--image PATH": "none",
        "--dtype {float32,bfloat16}": "float32 on a CPU, else bfloat16",
    }.items():
        assert re.search(f"{re.escape(flag)} [^-]*[(]default: {default}[)]", shown), flag


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("the volume is 12", "11 is the most", "use 11"), 2),
        (Preempted("asked to stop"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_endings_have_exit_codes(play, capsys, error, code):
    def fail(options):
        raise error

    play.run = fail
    assert cli.main(["play"]) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("jvdm: ")
    assert str(error) in printed.err
    assert not printed.out


def test_errors_are_json_too_when_json_is_wanted(play, capsys):
    def fail(options):
        raise ConfigError("the volume is 12", "11 is the most", "use 11")

    play.run = fail
    assert cli.main(["play", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {
        "kind": "ConfigError",
        "what": "the volume is 12",
        "why": "11 is the most",
        "fix": "use 11",
    }


def test_what_nobody_foresaw_keeps_its_traceback(play):
    def fail(options):
        raise ZeroDivisionError

    play.run = fail
    with pytest.raises(ZeroDivisionError):
        cli.main(["play"])


def test_a_result_that_is_not_ok_exits_1(play, capsys):
    play.run = lambda options: {"ok": False, "song": "", "volume": 0}
    assert cli.main(["play"]) == 1


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in cli.VERBS)
    assert all(f" {code} " in out for code in (0, 1, 2, 75, 130))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == jvdm.__version__


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_help_and_json(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_module_and_console_script_are_the_same_command(run_python):
    process = run_python("-m", "jvdm", "inspekt")
    assert process.returncode == 2
    assert process.stderr == "jvdm: there is no command 'inspekt'; did you mean inspect?; " + (
        "see jvdm --help\n"
    )


@pytest.mark.parametrize("config", ["nano", "configs/nano.py", "nano.py"])
def test_shipped_configs_are_found_anywhere(trained, monkeypatch, tmp_path, config):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", config]) == 0
    [(options, experiment)] = trained
    assert experiment.name == "nano"
    assert options.config == config


def test_a_config_file_of_the_user_is_loaded(trained, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG)
    arguments = ["train", str(path), "--workdir", "w", "--resume", "never", "--num-steps", "7"]
    assert cli.main(arguments) == 0
    [(options, experiment)] = trained
    assert (experiment.name, experiment.num_steps) == ("mine", 7)
    assert (options.workdir, options.resume) == (Path("w"), "never")


def test_a_path_in_configs_and_its_name_are_one_module(root):
    by_path = cli.load_experiment(str(root / "configs" / "nano.py"))
    by_name = cli.load_experiment("nano")
    assert type(by_path) is type(by_name)
    assert by_path == by_name


def test_nested_fields_are_overridden_and_nothing_else(trained):
    unchanged: Any = cli.load_experiment("nano")
    cli.main(
        [
            "train",
            "nano",
            "--optimizer.learning-rate",
            "3e-4",
            "--objective.system.model.width",
            "64",
        ]
    )
    [(_, experiment)] = trained
    assert experiment.optimizer.learning_rate == 3e-4
    system, before = experiment.objective.system, unchanged.objective.system
    assert system.model.width == 64
    assert dataclasses.replace(system, model=before.model) == before
    back = dataclasses.replace(
        experiment,
        optimizer=unchanged.optimizer,
        objective=dataclasses.replace(experiment.objective, system=unchanged.objective.system),
    )
    assert back == unchanged


def test_flags_may_come_before_the_config(trained):
    cli.main(["train", "--num-steps", "3", "nano"])
    assert trained[0][1].num_steps == 3


def test_flags_reach_the_package_and_the_preview(trained):
    flags = ["--package.defaults.height", "32", "--package.parts", "a", "--preview.count", "2"]
    assert cli.main(["train", "nano", *flags, "--sample-every", "3"]) == 0
    [(_, experiment)] = trained
    assert experiment.package.defaults.height == 32 and experiment.package.parts == ("a",)
    assert experiment.preview.count == 2 and experiment.sample_every == 3


def test_help_with_a_config_lists_the_fields_of_its_experiment(capsys):
    assert cli.main(["train", "nano", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in (
        "--workdir",
        "--num-steps",
        "--optimizer.learning-rate",
        "--objective.system.model",
    ):
        assert flag in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "shipped are"),
        (["nanno"], "did you mean nano"),
        (["nano", "--num-stps", "3"], "--num-steps"),
        (["nano", "--optimizer.learning-rat", "3"], "--optimizer.learning-rate"),
        (["nano", "--num-steps", "many"], "num-steps"),
    ],
)
def test_wrong_configs_and_fields_name_the_right_ones(trained, capsys, arguments, message):
    assert cli.main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not trained


def test_a_file_without_config_is_refused(tmp_path, capsys):
    path = tmp_path / "empty.py"
    path.write_text("")
    assert cli.main(["train", str(path)]) == 2
    assert "has no function config()" in capsys.readouterr().err


def test_options_and_experiment_share_no_field():
    from jvdm.experiment import Experiment
    from jvdm.train import TrainOptions

    names = [
        field.name for kind in (Experiment, TrainOptions) for field in dataclasses.fields(kind)
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
            "too small for this",
        ),
        (MemoryError(), "the memory is too small"),
        (RuntimeError("std::bad_alloc"), "make fewer videos at once"),
        (OSError(12, "Cannot allocate memory"), "make fewer videos at once"),
        (ModuleNotFoundError("jax requires jaxlib to be installed", name="jaxlib"), "jvdm doctor"),
        (RuntimeError("jaxlib version 0.4 is older than jax; needs version 0.10"), "jvdm doctor"),
    ],
)
def test_what_jax_and_the_machine_say_is_one_line(play, capsys, error, message):
    def fail(options):
        raise error

    play.run = fail
    assert cli.main(["play"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_platform_without_plugin_names_the_doctor_who_names_the_line(run_python):
    """Every verb that computes fails alike; `doctor` says how to mend it."""
    code = """
import sys
from jvdm import cli
from jvdm.diagnosis import CHECKS
print(cli.main(["generate", "a ball", "--weights", "nano", "--output", sys.argv[1]]))
print(CHECKS["devices"]().fix)
"""
    done = run_python("-c", code, "/tmp", JAX_PLATFORMS="cuda")
    assert done.stdout.splitlines()[0] == "2", done.stderr
    assert "JAX_PLATFORMS is 'cuda'; jvdm doctor says what is wrong" in done.stderr
    assert "Traceback" not in done.stderr
    assert 'unset JAX_PLATFORMS, or pip install "jvdm[cuda13]"' in done.stdout
