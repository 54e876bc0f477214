"""Every command that README, docs, notebooks, CONTRIBUTING and `--help` show is one and is run."""

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import jvdm
from jvdm import cli
from jvdm.video import read_video
from tests.architecture.source import ROOT
from tests.systems import step_caches

DOCS = tuple(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))
PAGES = ("README.md", *DOCS, "CONTRIBUTING.md", "launch/README.md", "pallas_kernels/README.md")
NANO = ["--weights", "nano", "--num-inference-steps", "4", "--output", "out"]
SHORT = ["--weights", "nano", "--num-inference-steps", "2", "--output", "out.mp4"]
RUN: dict[str, list[str]] = {
    r"generate .* --system (wave|mine\.py)": NANO,
    r"generate .* --sampling\.(matrix (lag|autoregressive)|guidance interval)": NANO,
    r"stream .* --duration 60s --then": [*SHORT, "--duration", "21s"],
    r"plan wan-1\.3b-480p --on h200x8": [],
    r"(inspect FOLDER|inspect)$": [],
    r"doctor": [],
}
"""Run here, with flags that make them short; the last of two equal flags counts."""
ELSEWHERE = {
    r"train configs/my_videos\.py|export work/mine|inspect --verify": "training/test_own_videos.py",
    r"train configs/families/wan_lora\.py|export work/lora": "training/test_lora.py",
    r"train configs/nano\.py": "training/test_real_resume.py",
    r"evaluate --system wave": "systems/test_systems.py",
    r"evaluate$": "test_evaluate.py",
    r"evaluate .*--streams": "test_evaluate.py",
    r"attention --weights nano": "attention/test_policies.py",
    r"attention --weights FOLDER --search": "systems/test_step_caches.py",
    r"convert": "cli/test_convert.py",
    r"generate --weights FOLDER --lora": "weights/test_adapters.py",
    r"generate --mesh ring=8": "cli/test_commands.py",
    r"generate .* --video-at": "generate/test_generate.py",
    r"generate .*--attention draft": "systems/test_sparse_systems.py",
    r"generate (--weights|--like|PROMPT)": "generate/test_generate.py",
    r"stream .*--(system|save|resume)": "generate/test_session.py",
    r"bench families": "test_families.py",
    r"bench (attention|model|tune)": "test_bench.py",
    r"bench parallel": "test_scaling.py",
    r"bench streams": "test_pace.py",
    r"bench systems": "test_comparison.py",
    r"serve": "serving/test_serve.py",
    r"demo": "serving/test_demo.py",
    r"train (CONFIG|config\.py)": "cli/test_cli.py",
    r"methods": "cli/test_methods.py",
    r"plan": "cli/test_plan.py",
    r"profile": "cli/test_profile.py",
}
"""Run by a test of their own, smaller or with other names."""
NOT_RUN = {
    r"train configs/(vae(_decoder)?|reader|tiny_t2v(_4step)?)\.py": "minutes to hours on an "
    "accelerator: planned by tests/training/test_recipes.py",
    r"([a-z]+|generate --stream)$": "names a verb or a flag, no whole command",
}
"""Only parsed, and why."""
HELP = {
    "jvdm COMMAND [options]": "cli/test_cli.py",
    "jvdm COMMAND --help": "cli/test_cli.py",
    "jvdm train CONFIG [options]": "cli/test_cli.py",
    "jvdm train CONFIG --help": "cli/test_cli.py",
}
"""What `--help` of the command and of its verbs says is to be typed, and where that is done."""
OTHERS = {
    r"pip install": "packaging/test_wheel.py",
    r"python -m jvdm$": "cli/test_cli.py",
    r"python -m notebooks\.images\.samples": "packaging/test_pages.py",
    r"python -m tests\.cli\.test_methods": "cli/test_methods.py",
    r"python -m tests\.mutations": "architecture/test_mutations.py",
    r"python -m tests\.parallel\.everywhere (few|batch)": "parallel/test_everywhere.py",
    r"python -m tests\.systems\.chunk_times": "systems/test_chunk_times.py",
    r"python -m tests\.systems\.drift_curves": "systems/test_stream_systems.py",
    r"python -m tests\.systems\.kept_clusters": "systems/test_sparse_systems.py",
    r"python -m tests\.systems\.skipped_blocks": "systems/test_sparse_systems.py",
    r"python -m tests\.systems\.step_caches measure": "cli/test_commands.py",
    r"python -m pallas_kernels\.attention\.tune": "pallas_kernels/test_tables.py",
    r"python -m pallas_kernels\.attention\.bench": "pallas_kernels/test_bench.py",
    r"python -m pytest": "",
    r"make (generate|test|check)": "",
    r"bash \.ci/run": "",
}
"""Programs other than `jvdm`, and the test of each; empty is what CI and its Makefile are."""


def commands(text: str) -> list[str]:
    """Returns the commands of jvdm in code blocks and between backticks, without the `jvdm`."""
    fenced = r"^```\w*\n(.*?)^```"
    found = []
    for block in re.findall(fenced, text, re.MULTILINE | re.DOTALL):
        found += [line.partition("  #")[0] for line in block.splitlines()]
    prose = re.sub(fenced, "", text, flags=re.MULTILINE | re.DOTALL)
    found += re.findall(r"`([^`]*)`", prose)
    said = [" ".join(line.split()) for line in found]
    lines = [line.removeprefix("jvdm ") for line in said if line.startswith("jvdm ")]
    return [line for line in lines if "|" not in line and not line.startswith("-")]


def shown() -> dict[str, str]:
    """Returns every command, and the page that shows it first."""
    pages = {name: (ROOT / name).read_text() for name in PAGES}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        pages[path.name] = "\n".join(texts)
    found: dict[str, str] = {}
    for name, text in pages.items():
        for line in commands(text):
            found.setdefault(line, name)
    return found


def programs(text: str) -> list[str]:
    """Returns the lines of code that call other programs, without environment and folder."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    said = [re.sub(r"^(\w+=\S+ )*(\.venv/bin/)?", "", " ".join(line.split())) for line in lines]
    return [line for line in said if re.match(r"(pip|python\d?|make|bash|curl) ", line)]


SHOWN = shown()
COMMANDS = list(SHOWN)


def arguments(command: str) -> list[str]:
    """Returns a command's arguments, its placeholders being files and names that there are."""
    names = {"CONFIG": "nano", "config.py": "nano", "NAME": "wave", "DIR": "work"}
    words = [names.get(word, word) for word in shlex.split(command) if word != "..."]
    return ["nano" if word == "FOLDER" and words[0] == "inspect" else word for word in words]


def homes(command: str) -> list[str]:
    """Returns the patterns of the three tables that a command begins with; the first counts."""
    return [key for table in (RUN, ELSEWHERE, NOT_RUN) for key in table if re.match(key, command)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command, monkeypatch):
    """It is read to the last flag and value, and not carried out."""
    given = []

    def note(verb: Any, module: Any, read: Any, *rest: Any) -> int:
        given.append(read.options)
        return 0

    monkeypatch.setattr(cli, "_carry_out", note)
    if command in cli.VERBS:  # a verb that is spoken of
        return
    assert cli.main(arguments(command)) == 0, f"{SHOWN[command]} shows it"
    assert given


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_run_or_says_why_not(command):
    assert homes(command), f"{SHOWN[command]} shows it: give it a line in one of the tables"


def test_no_line_of_the_tables_is_left_over():
    used = {homes(command)[0] for command in COMMANDS if homes(command)}
    spoken = {key for command in COMMANDS for key in homes(command)}
    assert used | spoken >= {*RUN, *ELSEWHERE, *NOT_RUN}
    assert all((ROOT / "tests" / name).is_file() for name in ELSEWHERE.values())


def test_every_command_of_help_is_run(capsys):
    said = []
    for words in ([], *([verb] for verb in cli.VERBS)):
        assert cli.main([*words, "--help"]) == 0
        text = " ".join(re.sub(r"[\u2500-\u257f]+", " ", capsys.readouterr().out).split())
        said += re.findall(r"jvdm (?:[a-z]+ )?[A-Z]{4,} (?:--help|\[options\])", text)
    assert set(said) == set(HELP)


@pytest.mark.parametrize("page", PAGES)
def test_other_programs_are_run_too(page):
    for line in programs((ROOT / page).read_text()):
        found = [place for key, place in OTHERS.items() if re.match(key, line)]
        assert found, f"{page} shows it: give {line!r} a line in OTHERS"
    assert all((ROOT / "tests" / name).exists() for name in OTHERS.values())


def test_no_program_is_left_over():
    lines = [line for page in PAGES for line in programs((ROOT / page).read_text())]
    assert not [key for key in OTHERS if not any(re.match(key, line) for line in lines)]


@pytest.mark.slow
def test_caches_are_measured_as_docs_say(monkeypatch, capsys):
    monkeypatch.setattr(step_caches, "PROMPTS", step_caches.PROMPTS[:1])
    every = {"every 2nd": step_caches.CACHES["every 2nd"]}
    monkeypatch.setattr(step_caches, "CACHES", every)
    step_caches.measure("nano", 2)
    head, plain, cached, fewer = capsys.readouterr().out.splitlines()[-4:]
    assert head.split() == ["cache", "rows", "same", "fine"]
    assert float(plain.split()[2]) == 100 > float(cached.split()[3])
    assert fewer.split()[:3] == ["fewer", "steps", "1"]


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """As it stands, with the small weights for those that it loads."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.setattr(jvdm, "load", functools.partial(jvdm.load, "nano"))
    exec(compile(code, "README.md", "exec"), {})
    assert read_video(tmp_path / "ball.mp4").frames.shape == (9, 64, 64, 3)


MINE = "def system(base):\n    return base\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if homes(c) and homes(c)[0] in RUN])
def test_it_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    words = arguments(command)
    words = [*words, "nano"] if words == ["inspect"] else words
    assert cli.main([*words, *RUN[homes(command)[0]]]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_eight_devices_share_a_video(run_python, tmp_path):
    asked = ["generate", "a red ball rests", "--mesh", "ring=8", *SHORT]
    asked += ["--output", tmp_path / "out.mp4"]
    run_python("-m", "jvdm", *asked, check=True, JAX_NUM_CPU_DEVICES="8")
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["settings"]["mesh"], record["device"]["count"]) == ("ring=8", 8)
    assert read_video(tmp_path / "out.mp4").frames.shape == (9, 64, 64, 3)


def test_a_misspelt_flag_is_seen(monkeypatch):
    monkeypatch.setattr(cli, "_carry_out", lambda *given: 0)
    (found,) = commands('```\njvdm generate "a ball" --sistem wave  # so\n```\n`jvdm`\n')
    assert found == 'generate "a ball" --sistem wave'
    assert cli.main(arguments(found)) == 2
