"""Guidance that keeps its difference beside dropping it in the same rows, and fewer steps.

python -m tests.systems.cfg_caches [WEIGHTS] [STEPS]

Prints, for every rule, the evaluations of both branches and the PSNR in dB of the clips to those
of the same steps with full guidance (`same`) and to those of four times the steps (`fine`).
"""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.arrays import no_type_check
from jvdm.fidelity import psnr
from jvdm.pipeline import Request
from jvdm.samplers import Guidance, Interval, KeptDifference
from tests.systems.step_caches import PROMPTS


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropped(KeptDifference):
    """The ablation: rows that would reuse are not guided."""

    def _weighed(self, memory: Any, call: Any) -> Any:
        return jnp.zeros_like(memory.velocity)


def made(pipe: Any, rule: Any, steps: int) -> tuple[np.ndarray, int]:
    """Returns the clips of all prompts, 0..1, and the evaluations of the network."""
    sampling = dataclasses.replace(pipe.system.sampling, guidance=rule)
    pipe = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
    request = Request(prompt=PROMPTS, seed=tuple(range(len(PROMPTS))), num_inference_steps=steps)
    run, calls = pipe.start(pipe.prepare(request)), 0
    levels = np.asarray(run.job.matrix.levels)
    for k in range(steps):
        run = pipe.advance(run, 1)
        calls += 1
        if isinstance(rule, KeptDifference):
            calls += int(float(run.state.carry[0].values.age.max()) == 1)
        elif isinstance(rule, Interval):
            calls += int(rule.low <= levels[k] <= rule.high)
        else:
            calls += 1
    return np.asarray(pipe.decode(run.state.x), np.float32) / 255, calls


def measure(weights: str = "nano", steps: int = 16) -> None:
    """Prints a row for every rule."""
    pipe: Any = jvdm.load(weights)
    plain = pipe.system.sampling.guidance
    scale = float(plain.scale)
    same, fine = made(pipe, plain, steps)[0], made(pipe, plain, 4 * steps)[0]

    def show(name: str, rule: Guidance, steps: int) -> int:
        clips, calls = made(pipe, rule, steps)
        near = [float(psnr(jnp.asarray(clips), jnp.asarray(x)).mean()) for x in (same, fine)]
        print(f"{name:28} {calls:3}  {near[0]:6.2f}  {near[1]:6.2f}", flush=True)
        return calls

    print(f"scale {scale}                calls    same    fine")
    show("all", plain, steps)
    counts = set()
    for above, longest in ((0.95, 1), (0.95, 4), (0.8, 1), (0.8, 2), (0.8, 4), (0.8, 100)):
        rule = KeptDifference(scale, longest=longest, above=above)
        counts.add(show(f"kept {longest} below {above}", rule, steps))
        show("  dropped", Dropped(scale, longest=longest, above=above), steps)
    for low, high in ((1.1, 1.1), (1.2, 1.2), (1.1, 1.0), (1.0, 1.1), (0.9, 0.9)):
        rule = KeptDifference(scale, longest=4, above=0.8, low=low, high=high)
        show(f"kept 4 below 0.8, {low} {high}", rule, steps)
    for edge in (0.55, 0.85):
        show(f"interval from {edge}", Interval(scale, edge, 1.0, execution="sequential"), steps)
    for count in sorted({(calls + 1) // 2 for calls in counts}, reverse=True):
        show(f"{count} steps", plain, count)


if __name__ == "__main__":
    named = dict(zip(("weights", "steps"), sys.argv[1:], strict=False))
    measure(named.get("weights", "nano"), int(named.get("steps", 16)))
