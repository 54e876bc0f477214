"""SIGTERM and Ctrl-C in every stage of `generate`, `decode` and `evaluate`."""

import os
import signal

import pytest

from jvdm import cli, decode, evaluate, generate, outputs
from jvdm import record as records
from jvdm.pipeline import Pipeline
from tests.generate.test_generate import PROMPT, STEM

SIGNALS = [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
STAGES = [
    (generate, "load"),
    (Pipeline, "prepare"),
    (Pipeline, "begin"),
    (Pipeline, "compile"),
    (Pipeline, "decode"),
    (outputs, "save_video"),
]


def signalled(monkeypatch, owner, name, number, swallow):
    """Lets a signal come at the beginning of a stage, and be swallowed there if asked."""
    stage = getattr(owner, name)

    def late(*arguments, **options):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if not swallow:
                raise
        return stage(*arguments, **options)

    monkeypatch.setattr(owner, name, late)


@pytest.mark.parametrize("swallow", [False, True], ids=["heard", "swallowed"])
@pytest.mark.parametrize("place", STAGES, ids=[name for _, name in STAGES])
@pytest.mark.parametrize("sent", SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_a_signal_in_any_stage_ends_the_command(
    monkeypatch, weights, tmp_path, capsys, place, sent, swallow
):
    (owner, stage), (number, code, name) = place, sent
    signalled(monkeypatch, owner, stage, number, swallow)
    before = signal.getsignal(number)
    arguments = ["generate", PROMPT, "--weights", str(weights), "--output", str(tmp_path)]
    assert cli.main([*arguments, "--seed", "0"]) == code
    shown = capsys.readouterr().err
    assert f"stopped by {name}" in shown and "Traceback" not in shown
    assert signal.getsignal(number) is before
    left = {path.name.removeprefix(f"{STEM}_0") for path in tmp_path.iterdir()}
    if stage in ("decode", "save_video"):
        assert ".latents.safetensors" in left
        assert swallow or f"finish the video with jvdm decode {tmp_path}" in shown
    elif not swallow and stage in ("load", "prepare"):
        assert not left


@pytest.mark.parametrize("sent", SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_sampling_saves_the_latents(monkeypatch, weights, tmp_path, capfd, sent):
    number, code, name = sent
    advance = Pipeline.advance

    def interrupted(self, run, num_rows=None, callback=None):
        assert callback is not None

        def press(row, latents):
            if row == 1:
                os.kill(os.getpid(), number)
            return callback(row, latents)

        return advance(self, run, num_rows, press)

    monkeypatch.setattr(Pipeline, "advance", interrupted)
    arguments = ["generate", PROMPT, "--weights", str(weights), "--output", str(tmp_path)]
    assert cli.main([*arguments, "--seed", "0"]) == code
    shown = capfd.readouterr().err
    assert "the latents are saved after this step; Ctrl-C again ends the run at once" in shown
    assert f"stopped by {name} after 2 of 3 steps; the latents are saved" in shown
    assert records.read(tmp_path / f"{STEM}_0.json").status == "interrupted"


@pytest.mark.parametrize(("verb", "module"), [("decode", decode), ("evaluate", evaluate)])
@pytest.mark.parametrize("sent", SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_other_commands_are_stopped_too(monkeypatch, capsys, sent, verb, module):
    """Also where something swallowed the exception and went on to the end."""
    number, code, name = sent

    def run(options):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            return {"ok": True}

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "text", lambda result: "")
    assert cli.main([verb, *(["x.latents.safetensors"] if verb == "decode" else [])]) == code
    assert f"stopped by {name} before it was done" in capsys.readouterr().err
