"""The files of `launch/`: they parse, start what they should and begin again when they should."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.several import free_port

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
PROFILES = ("none", "gpu-train", "gpu-inference", "tpu-train", "tpu-inference")


def stand_in(folder, name, text):
    """Puts a program of a scheduler into `folder`, which notes how it was called."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "$(basename "$0") $*" >> "$CALLS"\n{text}\n')
    path.chmod(0o755)


def start(script, folder, *arguments, **environment):
    """Runs a script with the programs in `folder`; returns the process and all calls."""
    calls = folder / "calls"
    env = os.environ | {"CALLS": str(calls), "PATH": f"{folder}:{os.environ['PATH']}"}
    env |= {"SLURM_SUBMIT_DIR": str(LAUNCH.parent), "SLURM_JOB_ID": "7", **environment}
    command = ["bash", str(LAUNCH / script), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if (program := shutil.which("shellcheck", path=here)) is None:
        pytest.skip("shellcheck is not installed")
    check = [program, "-x", script]  # with what it reads
    done = subprocess.run(check, cwd=LAUNCH.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_profile_adds_to_the_flags_and_an_unknown_one_is_refused():
    def flags(profile):
        command = f'. {LAUNCH}/flags.sh {profile}; echo "$XLA_FLAGS|$LIBTPU_INIT_ARGS"'
        env = os.environ | {"XLA_FLAGS": "--mine=1", "LIBTPU_INIT_ARGS": ""}
        return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)

    for profile in PROFILES:
        done = flags(profile)
        xla, tpu = done.stdout.strip().split("|")
        assert xla.startswith("--mine=1") and profile in done.stderr
        assert ("--xla_gpu" in xla) == profile.startswith("gpu"), done.stdout
        assert ("--xla_tpu" in tpu) == profile.startswith("tpu"), done.stdout
    wrong = flags("fast")
    assert wrong.returncode == 2 and all(profile in wrong.stderr for profile in PROFILES)


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (75, 50, True), (137, 0, True), (1, 3, False)],
)
def test_slurm_begins_again_after_preemption_and_a_few_crashes(tmp_path, code, restarts, again):
    stand_in(tmp_path, "srun", f"exit {code}")
    stand_in(tmp_path, "scontrol", "")
    done, calls = start(
        "slurm.sbatch", tmp_path, "nano", "--workdir", "w w", SLURM_RESTART_COUNT=str(restarts)
    )
    assert done.returncode == code, done.stderr
    assert calls[0] == "srun --kill-on-bad-exit=0 jvdm train nano --workdir w w"
    assert calls[1:] == ["scontrol requeue 7"] * again


# What a slice answers one question after the other: it is asked for, waited for, taken away, and
# asked for again. `ssh` is called for the set-up and for the run.
GCLOUD = """
turn() { n=$(cat "$CALLS.$1" 2>/dev/null || echo 0); echo $((n + 1)) > "$CALLS.$1"; }
case "$*" in
  *describe*) turn state; sed -n "$((n + 1))p" "$STATES" ;;
  *ssh*"jvdm train"*) turn run; exit "$(sed -n "$((n + 1))p" "$CODES")" ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "codes", "end", "created"),
    [
        (["", "WAITING_FOR_RESOURCES", "ACTIVE"], [0], 0, 1),
        (["", "ACTIVE", "SUSPENDED", "", "ACTIVE"], [75, 0], 0, 2),
        (["ACTIVE"], [2], 2, 0),
        (["ACTIVE"] * 9, [1, 1, 1, 1], 1, 0),
    ],
    ids=["waits", "preempted", "to fix", "crashes"],
)
def test_a_tpu_slice_is_asked_for_until_the_run_is_done(tmp_path, states, codes, end, created):
    stand_in(tmp_path, "gcloud", GCLOUD)
    answers = {"STATES": states, "CODES": map(str, codes)}
    for name, lines in answers.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    where = {name: str(tmp_path / name) for name in answers}
    where |= {"NAME": "n", "ZONE": "z", "TYPE": "v6e-16", "WORKDIR": "/mnt/w w", "PAUSE": "0"}
    done, calls = start("tpu_vm.sh", tmp_path, "nano", "--seed", "3", **where)
    assert done.returncode == end, done.stderr
    assert sum("queued-resources create" in call for call in calls) == created
    runs = [call for call in calls if "jvdm train" in call]
    assert len(runs) == len(codes) and all("--worker=all" in call for call in runs)
    assert all(r"jvdm train nano --seed 3 --workdir /mnt/w\ w" in call for call in runs)
    assert any("delete" in call for call in calls) == (end == 0)


def test_xpk_gets_the_command_and_the_codes_that_start_again(tmp_path):
    stand_in(tmp_path, "xpk", "")
    where = {"CLUSTER": "c", "TYPE": "v5litepod-16", "IMAGE": "i", "WORKDIR": "/mnt/w"}
    done, (call,) = start("xpk.sh", tmp_path, "nano", "--name", "a b", **where)
    assert done.returncode == 0, done.stderr
    assert r"exec jvdm train nano --name a\ b --workdir /mnt/w" in call
    found = re.search(r"--restart-on-exit-codes (\S+)", call)
    assert found and {"75", "1"} <= set(found[1].split(",")) and "2" not in found[1].split(",")
    wrong, _ = start("xpk.sh", tmp_path, **(where | {"WORKDIR": ""}))
    assert wrong.returncode != 0 and "folder that all pods see" in wrong.stderr


def read(name) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((LAUNCH / name).read_text())


def test_a_server_would_take_the_jobset():
    """By the schema of JobSet (`tests/launch/jobset_schema.py` says where it is from)."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())
    given = read("jobset.yaml")
    jsonschema.validate(given, schema)
    job = given["spec"]["replicatedJobs"][0]["template"]["spec"]
    wrong: list[tuple[dict[str, Any], str, Any]] = [
        (given["spec"], "failurePolicies", {}),
        (given["spec"]["failurePolicy"]["rules"][0], "action", "FailEverything"),
        (job, "parallelism", "four"),
        (job["template"]["spec"], "restart", "Never"),
        (job["template"]["spec"]["containers"][0], "resource", {}),
        (job["podFailurePolicy"]["rules"][0]["onExitCodes"], "values", ["2", "75"]),
    ]
    for part, name, value in wrong:
        before = dict(part)
        part[name] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(given, schema)
        part.clear()
        part.update(before)
    jsonschema.validate(given, schema)


def test_a_jobset_ends_for_good_at_2_and_begins_again_at_75():
    spec = read("jobset.yaml")["spec"]
    (job,) = spec["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0

    def action(code):
        # What Kubernetes says of a job whose pod ended so.
        said = f"Container jvdm for pod default/jvdm-slice-0-1-x failed with exit code {code} "
        said += "matching FailJob rule at index 0"
        assert code in rule["onExitCodes"]["values"]
        rules = spec["failurePolicy"]["rules"]
        patterns = ((one["action"], one["onJobFailureMessagePatterns"]) for one in rules)
        return next(name for name, (pattern,) in patterns if re.search(pattern, said))

    assert action(2) == "FailJobSet"
    assert action(75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_sky_begins_again_at_75_and_names_every_process(tmp_path):
    task = read("sky.yaml")
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [75] and recovery["max_restarts_on_errors"] > 0
    (tmp_path / "jvdm/bin").mkdir(parents=True)
    stand_in(tmp_path / "jvdm/bin", "jvdm", "")
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2"}
    env = os.environ | nodes | {"SKYPILOT_NODE_RANK": "1", "CALLS": str(tmp_path / "calls")}
    env |= {"HOME": str(tmp_path), "CONFIG": "nano", "JVDM_FLAGS": "none"}
    subprocess.run(["bash", "-ec", task["run"]], env=env, cwd=LAUNCH.parent, check=True)
    called = (tmp_path / "calls").read_text().split()
    assert called[1:5] == ["train", "nano", "--workdir", "/runs/nano"]
    place = "--coordinator-address 10.0.0.7:8476 --num-processes 2 --process-id 1"
    assert " ".join(called[5:]) == place


SRUN = """
shift
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2
pids=() code=0
for id in 0 1; do SLURM_PROCID=$id SLURM_LOCALID=$id "$@" & pids+=($!); done
for pid in "${pids[@]}"; do
  wait "$pid" && continue
  last=$?
  [ "$last" -le "$code" ] || code=$last
done
exit "$code"
"""


@pytest.mark.slow
def test_slurm_trains_in_two_processes_that_find_each_other(tmp_path):
    """Behind a stand-in for srun that sets its variables, everything else is real."""
    pytest.importorskip("grain")
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "jvdm", f'exec {sys.executable} -m jvdm "$@"')
    (tmp_path / "config.py").write_text("from tests.parallel.several import experiment as config\n")
    environment = {"JAX_COORDINATOR_PORT": str(free_port()), "JAX_PLATFORMS": "cpu"}
    environment |= {"PYTHONPATH": str(LAUNCH.parent)}
    workdir = tmp_path / "run"
    arguments = (str(tmp_path / "config.py"), "--workdir", str(workdir), "--json")
    done, calls = start("slurm.sbatch", tmp_path, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert sum(call.startswith("jvdm train") for call in calls) == 2
    assert (
        "2 processes on 1 hosts met" in done.stderr and "flags of profile gpu-train" in done.stderr
    )
    assert done.stdout.count('"step": 12') == 1  # only process 0 says it
    assert (workdir / "weights/model.json").is_file()


@pytest.mark.slow
def test_processes_of_open_mpi_find_each_other(tmp_path):
    pytest.importorskip("grain")
    if (mpirun := shutil.which("mpirun")) is None:
        pytest.skip("apt install openmpi-bin: no mpirun")
    (tmp_path / "config.py").write_text("from tests.parallel.several import experiment as config\n")
    begin = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]
    train = ["-m", "jvdm", "train", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(LAUNCH.parent)}
    done = subprocess.run([*begin, *train, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 processes on 1 hosts met" in done.stderr
    assert done.stdout.count('"step": 12') == 1  # only process 0 says it


@pytest.mark.slow
def test_ray_trains_in_two_workers_as_one_and_ends_with_what_is_to_be_fixed(tmp_path):
    """Three minutes on two busy cores; Ray is not among what tests need."""
    pytest.importorskip("ray.train", reason="pip install ray[train]")
    begin = [sys.executable, str(LAUNCH / "ray_train.py"), "--cpu", "--workers", "2"]
    begin += ["--restarts", "0", "--workdir", str(tmp_path)]
    small = ["--num-steps=2", "--batch-size=4", "--source.pool=16", "--source.fresh=4"]
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([*begin, "nano", *small], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "weights/model.safetensors").is_file()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()  # one of the two writes
    assert '"step": 2' in line
    wrong = subprocess.run([*begin, "nowhere"], env=env, capture_output=True, text=True)
    assert wrong.returncode == 2, wrong.stderr
