"""Training of a causal student on pairs of noise and film: ablations of self_forcing.

python -m tests.systems.paired_student films|frames STEPS TEACHER START WORKDIR

The student, `START` at first, learns from which point of a guided TEACHER's way, in `MICRO` steps,
its end comes, a latent frame at a time. With `films` the teacher makes all frames together, and the
student sees the ends of those before: how Self-Forcing begins. With `frames` the teacher makes the
frame alone, behind true ones, which the student sees too: the other second stage of Causal Forcing.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, PyTree
from jvdm.configs import causal_forcing
from jvdm.keys import named
from jvdm.samplers.process import expand
from jvdm.samplers.segments import follow
from jvdm.train import train
from jvdm.training.distillation import Distillation
from jvdm.training.objective import TrainCall
from jvdm.training.teachers import guided_teacher
from jvdm.weights.folder import find

MICRO = 16


@dataclasses.dataclass(frozen=True)
class Paired(Distillation):
    """The objective: ends of the teacher's way instead of the student's own jumps."""

    together: bool = True
    """Whether the teacher makes all frames of a film at once."""

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the mean error of jumps to the ends, over the frames in work."""
        (system, segments), tokens = self.taught, batch["tokens"]
        true = batch["latents"].astype(jnp.float32)
        noise = jax.random.normal(named(call.key, "noise"), true.shape, jnp.float32)
        row = self.rows(segments)(named(call.key, "rows"), *noise.shape[:2])
        mask = row.loss_mask * (row.t > 0)
        level = jnp.max(row.t * mask, 1, keepdims=True) * jnp.ones_like(mask)
        denoise = guided_teacher(system, call.frozen, self.system.text, tokens)
        points = jnp.asarray(segments.points)[:, None, None] * jnp.ones_like(mask)
        way = points if self.together else jnp.where(mask > 0, points, row.t)
        first = jnp.where(expand(way[0] > 0, true), noise, true)

        def step(now: tuple[Array, Array], ends: Array) -> tuple[tuple[Array, Array], None]:
            x, kept = now
            kept = jnp.where(expand(jnp.isclose(ends[0], level), x), x, kept)
            carry = system.start(x.shape, x.shape[1])
            rules = (system.sampling.solver, system.process, ends, x, call.key)
            return (follow(denoise, *rules, carry), kept), None

        steps = jnp.stack([way[:-1], way[1:]], 1)
        (film, there), _ = jax.lax.stop_gradient(jax.lax.scan(step, (first, first), steps))
        waits = jnp.where(expand(row.t > 0, film), noise, film)
        shown = jnp.where(expand(mask > 0, film), there, waits)
        ends = jnp.where(mask > 0, 0.0, row.t)
        landed = self.jump(params, self.system.told(params, tokens), shown, row.t, ends)
        error = jnp.mean(jnp.square(landed - film), (2, 3, 4))
        return jnp.sum(error * mask) / jnp.maximum(jnp.sum(mask), 1.0), {}


def main(pairs: str, steps: int, teacher: str, start: str, workdir: str) -> None:
    """Trains a student and writes its weights."""
    base: Any = causal_forcing.config()
    objective = base.objective
    fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    fields |= {"teacher": teacher, "micro": MICRO}
    objective = Paired(**fields, together={"films": True, "frames": False}[pairs])
    source = dataclasses.replace(base.source, pool=1024, fresh=2, skip=5000)
    given: dict[str, Any] = {"objective": objective, "source": source, "num_steps": steps}
    given |= {"start_from": find(start), "preview": None, "log_every": 50}
    print(train(dataclasses.replace(base, **given), Path(workdir)))


if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
