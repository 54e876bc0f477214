"""`launch/slurm.sbatch` below SLURM itself: a cluster of one node, which is this machine."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.several import free_port, step_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "launch/slurm.sbatch"
NODE = socket.gethostname().partition(".")[0]
TWO = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")
SERVERS = ("munged", "slurmctld", "slurmd")
# What is left of a job's credentials keeps it from being started again: five seconds of them.
CONFIG = """
ClusterName=here
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={node} NodeAddr=127.0.0.1 CPUs=96 Gres=gpu:8
PartitionName=main Nodes={node} Default=YES State=UP
"""


def slurm(*command, **given) -> str:
    """Returns what a program of SLURM prints."""
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60, **given
    ).stdout.strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Servers of SLURM, of a node that says to be one of those that the file asks for."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    servers = {name: shutil.which(name, path=path) or "" for name in SERVERS}
    if lost := [name for name, program in servers.items() if not program]:
        pytest.skip(f"apt install slurmctld slurmd slurm-client munge: no {', '.join(lost)}")
    if os.geteuid():
        pytest.skip("slurmd wants to be root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool", *(f"gpu{number}" for number in range(8))):
        (folder / name).mkdir() if name[0] == "s" else (folder / name).touch()
    key, config = folder / "key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    about = {"node": NODE, "folder": folder, "user": getpass.getuser()}
    config.write_text(CONFIG.format(**about, ports=(free_port(), free_port())))
    (folder / "gres.conf").write_text(f"NodeName={NODE} Name=gpu File={folder}/gpu[0-7]\n")
    munge = ["--foreground", "--force", f"--socket={folder}/munge", f"--key-file={key}"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    rest = {"munged": munge, "slurmctld": ["-D"], "slurmd": ["-D", "-N", NODE]}
    running = []
    with pytest.MonkeyPatch.context() as patch, (folder / "said").open("w") as said:
        patch.setenv("SLURM_CONF", str(config))
        for name, program in servers.items():
            running.append(subprocess.Popen([program, *rest[name]], stdout=said, stderr=said))
        try:
            for _ in range(100):
                ask = ["sinfo", "--noheader", "--format=%T"]
                if "idle" in subprocess.run(ask, capture_output=True, text=True).stdout:
                    break
                time.sleep(0.2)
            else:
                pytest.skip(f"SLURM does not start here: {(folder / 'said').read_text()[-900:]}")
            yield folder
        finally:
            for server in reversed(running):
                server.terminate()
                server.wait(20)


@pytest.fixture
def submitted(cluster, tmp_path):
    """Submits a run of two processes; returns its number, and the file of what it says."""
    program = tmp_path / "jvdm"
    program.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -m jvdm "$@"\n')
    program.chmod(0o755)
    log = tmp_path / "log"

    def submit(*arguments, **environment):
        env = os.environ | {"JVDM": str(program), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)  # that of the tests
        asked = ["sbatch", "--parsable", *TWO, f"--output={log}", SCRIPT, *arguments]
        return slurm(*asked, env=env | environment), log

    return submit


def about(job) -> dict[str, str]:
    """Returns what SLURM says of a job."""
    return dict(re.findall(r"(\w+)=(\S+)", slurm("scontrol", "show", "job", job)))


def end_of(job) -> dict[str, str]:
    """Returns what SLURM says of a job that has ended for good."""
    for _ in range(300):
        if (found := about(job))["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"):
            return found
        time.sleep(0.3)
    raise AssertionError(f"{found}")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_controller_takes_the_file_and_no_node_that_is_too_small():
    asked = ["sbatch", "--test-only", "--nodes=1", SCRIPT, "nano", "--workdir", "w"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "using 96 processors" in done.stderr, done.stderr
    asked.insert(2, "--gpus-per-node=9")
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "not available" in done.stderr, done.stderr


@pytest.mark.slow
def test_what_was_told_to_end_saves_and_is_started_again(submitted, tmp_path):
    """SIGTERM reaches both processes, as five minutes before the end; the second start goes on."""
    pytest.importorskip("grain")
    config, run = tmp_path / "config.py", tmp_path / "run"
    config.write_text(
        "from tests.parallel import several\n"
        "several.PAUSES['clip'] = 0.1\n"
        "config = several.experiment\n"
    )
    job, log = submitted(str(config), "--workdir", str(run), "--json")
    for _ in range(600):
        if step_of(run) >= 3:
            break
        time.sleep(0.1)
    slurm("scancel", "--signal=TERM", job)
    found, said = end_of(job), log.read_text()
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), said
    assert said.count("flags of profile gpu-train") == 2
    assert said.count("2 processes on 1 hosts met") == 2
    stopped = re.search(r"stopped by SIGTERM at step (\d+) of 12", said)
    result = json.loads(said[said.rindex('{\n  "step"') :])
    assert stopped and (result["step"], result["resumed_from"]) == (12, int(stopped[1]))
    assert 3 <= int(stopped[1]) < 12 and (run / "weights/model.json").is_file()
    assert (run / "compiled").is_dir()  # of programs, which process 0 writes and all read


@pytest.mark.slow
@pytest.mark.parametrize(("code", "restarts"), [(2, 0), (1, 1)], ids=["to fix", "crash"])
def test_what_is_to_be_fixed_is_not_started_again_and_a_crash_so_often(
    submitted, tmp_path, code, restarts
):
    program = tmp_path / "ends"
    program.write_text(f'#!/usr/bin/env bash\nexit "$((SLURM_PROCID * {code}))"\n')
    program.chmod(0o755)
    job, log = submitted("nano", JVDM=str(program), JVDM_CRASHES="1")
    found, said = end_of(job), log.read_text()
    assert (found["ExitCode"], int(found["Restarts"])) == (f"{code}:0", restarts), said
    assert said.count("flags of profile gpu-train") == 1 + restarts
