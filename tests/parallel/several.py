"""A training run of milliseconds, as one of two or four processes that share four devices.

`python -m tests.parallel.several WORKDIR PORT PROCESS COUNT [resume] [steps=N] [start_from=FILE]
[PAUSE=SECONDS]`; `start` and `finish` do it from a test.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.data.host import HostSource
from jvdm.experiment import Experiment
from jvdm.training.optimizer import Optimizer
from jvdm.world.vocabulary import MAX_TOKENS
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]
MESH = "data,fsdp=2"
PAUSES = {"clip": 0.0, "trace": 0.0, "sheet": 0.0, "frozen": 0.0}
"""Seconds that a clip, a compilation and a sheet take at least, and, in every process but the
first, what does not train; no matter of the experiment."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """Ten clips of noise; the third cannot be used."""

    shape: tuple[int, int, int] = (2, 4, 4)

    def open(self, workdir=None):
        return self

    def digest(self):
        return "ten clips of noise"

    def __len__(self):
        return 10

    def __getitem__(self, index):
        time.sleep(PAUSES["clip"])
        frames = np.random.default_rng(index).integers(0, 256, (*self.shape, 3), np.uint8)
        tokens = np.full(MAX_TOKENS, index, np.int32)
        return None if index == 2 else {"video": frames, "tokens": tokens}


@dataclasses.dataclass(frozen=True)
class Brightness(toy.Line):
    """Learns the brightness of frames with a matrix that is large enough to be split."""

    width: int = 32

    def init(self, key):
        first, second = jax.random.split(key)
        return {
            "layers_0": {"kernel": jax.random.normal(first, (96, self.width)) * 0.1},
            "head": {"kernel": jax.random.normal(second, (self.width, 1)) * 0.5},
        }

    def frozen(self):
        if jax.process_index():
            time.sleep(PAUSES["frozen"])
        return {"middle": np.full((1, 1, 1, 1, 3), 0.5, np.float32)}

    def loss(self, params, batch, call):
        if PAUSES["trace"]:
            (Path(sys.argv[1]) / "compiling").touch()
            time.sleep(PAUSES["trace"])
        x = (batch.video - call.frozen["middle"]).reshape(len(batch.video), -1)
        x = x + 0.1 * jax.random.normal(call.key, x.shape)
        y = jnp.tanh(x @ params["layers_0"]["kernel"]) @ params["head"]["kernel"]
        error = y[:, 0] - batch.video.mean((1, 2, 3, 4))
        return jnp.mean(error**2), {"bias": jnp.mean(error)}


@dataclasses.dataclass(frozen=True)
class Sheet(toy.Heat):
    """Shows the weights of the head."""

    def render(self, objective, params, data):
        time.sleep(PAUSES["sheet"])
        return super().render(objective, params, data)


def experiment(num_steps=12, start_from=None) -> Experiment:
    """Twelve steps, checkpoints every four, a sheet in the middle."""
    base = toy.experiment(num_steps=num_steps, log_every=2, checkpoint_every=4, sample_every=6)
    return dataclasses.replace(
        base,
        objective=Brightness(),
        source=HostSource(Clips(), batch_size=8, threads=1),
        # Or the order of sums over devices would decide over roundings to bfloat16.
        optimizer=Optimizer(warmup_steps=3, matrix_dtype="float32"),
        preview=Sheet(),
        start_from=start_from,
    )


def free_port() -> int:
    """Returns a port that nobody listens at.

    It is below those that systems hand out: who runs beside could be given one of them before it is
    used.
    """
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("", port))
            return port


def hears_everything():
    """A background job, in which tests may run, ignores signals, and so would what it starts."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(workdir: Path, count: int, *arguments: str) -> list[subprocess.Popen]:
    """Starts the processes of a run."""
    port = free_port()
    command = ["-m", "tests.parallel.several", str(workdir), str(port)]
    return [begin(*command, str(process), str(count), *arguments) for process in range(count)]


def begin(*arguments: str) -> subprocess.Popen:
    """Starts Python as one process of a run."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        preexec_fn=hears_everything,
        **streams,
    )


def finish(processes: list[subprocess.Popen], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Waits for all; returns exit code, output and errors of each.

    Raises:
        AssertionError: If one does not end; it says where its threads are.
    """
    deadline, late = time.monotonic() + timeout, []
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            late.append(process)
            process.send_signal(signal.SIGABRT)
    said = [process.communicate(timeout=30) for process in processes]
    assert not late, "\n".join(errors for _, errors in said)
    return [(process.returncode, *one) for process, one in zip(processes, said, strict=True)]


def step_of(workdir: Path) -> int:
    """Returns the step of the heartbeat; -1 before there is one."""
    path = workdir / "heartbeat.json"
    return json.loads(path.read_text())["step"] if path.exists() else -1


def wait_for(processes: list[subprocess.Popen], condition, seconds: float = 60) -> None:
    """Waits until something holds or a process has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and all(one.poll() is None for one in processes):
        if condition():
            return
        time.sleep(0.005)


if __name__ == "__main__":
    from jvdm.errors import JvdmError
    from jvdm.parallel import processes
    from jvdm.train import train

    workdir, port, process, count = sys.argv[1], *map(int, sys.argv[2:5])
    jax.config.update("jax_num_cpu_devices", 4 // count)
    settings = dict(argument.split("=") for argument in sys.argv[5:] if "=" in argument)
    start_from = Path(settings.pop("start_from")) if "start_from" in settings else None
    steps = int(settings.pop("steps", 12))
    PAUSES.update({name: float(value) for name, value in settings.items()})
    try:
        with processes.initialize(f"127.0.0.1:{port}", count, process, timeout_s=30):
            how: Any = "must" if "resume" in sys.argv else "auto"
            print(json.dumps(train(experiment(steps, start_from), workdir, how, mesh=MESH)))
    except JvdmError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
