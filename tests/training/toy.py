"""A training run of milliseconds: fit a line, with every part that a real run has.

`python -m tests.training.toy WORKDIR [field=value ...]` runs it in its own process.
"""

import ast
import dataclasses
import json
import sys
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.experiment import Experiment
from jvdm.parallel.mesh import split_batch
from jvdm.training.optimizer import Optimizer
from jvdm.weights.folder import Defaults
from jvdm.weights.package import Component, Packaging


@dataclasses.dataclass(frozen=True)
class Line:
    """Learns `y = w x` with a two-layer network and dropout noise."""

    width: int = 16
    trace_seconds: float = 0.0
    """How long the compilation takes at least."""
    summary_seconds: float = 0.0
    """How long the measurement takes before the weights are written."""

    def init(self, key):
        first, second = jax.random.split(key)
        return {
            "layers_0": {"kernel": jax.random.normal(first, (4, self.width)) * 0.5},
            "head": {"kernel": jax.random.normal(second, (self.width, 1)) * 0.5},
        }

    def loss(self, params, batch, call):
        time.sleep(self.trace_seconds)
        noisy = batch["x"] + 0.1 * jax.random.normal(call.key, batch["x"].shape)
        hidden = jnp.tanh(noisy @ params["layers_0"]["kernel"])
        error = (hidden @ params["head"]["kernel"])[:, 0] - batch["y"]
        return jnp.mean(error**2), {"bias": jnp.mean(error)}

    def components(self, params):
        return {"line": Component(self, params)}

    def summary(self, params):
        time.sleep(self.summary_seconds)
        return {"largest": float(jnp.abs(params["head"]["kernel"]).max())}


@dataclasses.dataclass(frozen=True)
class Heat:
    """Shows the weights of the head as a picture."""

    sheet_seconds: float = 0.0

    def render(self, objective, params, data):
        time.sleep(self.sheet_seconds)
        picture = jax.nn.sigmoid(params["head"]["kernel"])[None, None, :, :, None]
        return jnp.broadcast_to(picture, (1, 1, objective.width, 8, 3)), ["head"]


class Counter:
    """Host state: which batch comes next."""

    def __init__(self, turn: int):
        self.turn = turn


@flax.struct.dataclass
class HostBatch:
    x: jax.Array
    y: jax.Array
    counter: Counter = flax.struct.field(pytree_node=False)
    mesh: jax.sharding.Mesh = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class HostLines:
    """Makes batches on the host from its own counter, which the checkpoint must keep."""

    batch_size: int = 8
    bad_from: int = 1_000_000
    """Batches from this to `bad_until` are not finite."""
    bad_until: int = 2_000_000
    step_seconds: float = 0.0

    def start(self, position, saved, mesh):
        x, y = self._batch(0, mesh)
        return HostBatch(x, y, Counter(int(saved) if saved else 0), mesh)

    def _batch(self, turn, mesh):
        x = np.random.default_rng(turn).normal(size=(self.batch_size, 4)).astype(np.float32)
        bad = self.bad_from <= turn < self.bad_until
        return split_batch((x, x[:, 0] * np.float32(np.nan if bad else 1)), mesh)

    def feed(self, data):
        time.sleep(self.step_seconds)
        x, y = self._batch(data.counter.turn, data.mesh)
        data.counter.turn += 1
        return data.replace(x=x, y=y)

    def draw(self, data, step, batch_size):
        return {"x": data.x, "y": data.y}, data

    def saved(self, data):
        return str(data.counter.turn).encode()


def experiment(**settings) -> Experiment:
    """Forty steps; `settings` go to the experiment or one of its parts."""
    parts: dict[type, dict[str, Any]] = {Line: {}, HostLines: {}, Heat: {}, Experiment: {}}
    for name, value in settings.items():
        part = next(p for p in parts if name in {f.name for f in dataclasses.fields(p)})
        parts[part][name] = value
    base: dict[str, Any] = {"num_steps": 40, "log_every": 5}
    base |= {"checkpoint_every": 10, "sample_every": 20}
    return Experiment(
        name="toy",
        objective=Line(**parts[Line]),
        source=HostLines(**parts[HostLines]),
        optimizer=Optimizer(warmup_steps=3),
        batch_size=8,
        package=Packaging("toy", Defaults(8, 8, 1, 1.0)),
        preview=Heat(**parts[Heat]),
        **(base | parts[Experiment]),
    )


if __name__ == "__main__":
    from jvdm.errors import JvdmError
    from jvdm.train import train

    given = dict(argument.split("=") for argument in sys.argv[2:])
    resume: Any = given.pop("resume", "auto")
    values = {name: ast.literal_eval(value) for name, value in given.items()}
    try:
        print(json.dumps(train(experiment(**values), sys.argv[1], resume=resume)))
    except JvdmError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
