"""Measured orders of the deterministic solvers: `python -m tests.samplers.orders [--write]`.

The flow of a mixture of normal distributions has a known end. Levels are equally spaced in
`lambda`, from -6 to 2, in float64 (levels themselves are float32 numbers); the clip's four frames
pass through grids of their own when `mixed`.
"""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.samplers import from_index, rectified_flow, sample, vp_cosine
from jvdm.samplers.process import Process
from jvdm.samplers.solvers import SOLVERS, DPMSolverPP3M, Solver, UniPC
from tests.samplers.problems import mixture_denoiser, mixture_end

README = Path(__file__).resolve().parents[2] / "jvdm" / "samplers" / "README.md"
FINEST, STEPS, FRAMES = 160, (40, 80, 160), 4
PROCESSES = {"flow": rectified_flow(), "cosine": vp_cosine()}

# Orders at small steps. `lower_order_final` (a default of UniPC, safe with few steps) ends with
# a step of first order, which is all that its higher orders see at the end of this interval.
CASES: dict[str, tuple[Solver, int]] = {
    "euler": (SOLVERS["euler"], 1),
    "heun": (SOLVERS["heun"], 2),
    "ddim": (SOLVERS["ddim"], 1),
    "dpmpp_2m": (SOLVERS["dpmpp_2m"], 2),
    "dpmpp_2s": (SOLVERS["dpmpp_2s"], 2),
    "dpmpp_3m": (SOLVERS["dpmpp_3m"], 3),
    "dpmpp_3m, published": (DPMSolverPP3M(compat=True), 2),
    "edm_euler": (SOLVERS["edm_euler"], 1),
    "edm_heun": (SOLVERS["edm_heun"], 2),
    "unipc1": (SOLVERS["unipc1"], 2),
    "unipc2": (UniPC(2, lower_order_final=False), 3),
    "unipc3": (UniPC(3, lower_order_final=False), 4),
    "unipc2, no corrector": (UniPC(2, corrector=False, lower_order_final=False), 2),
    "unipc3, no corrector": (UniPC(3, corrector=False, lower_order_final=False), 3),
}


def errors(solver: Solver, process: Process, mixed: bool = False) -> np.ndarray:
    """Returns the mean error after each of `STEPS` steps."""
    with jax.enable_x64(True):
        noise = np.random.default_rng(0).standard_normal((1, FRAMES, 16))
        position = np.linspace(0, 1, FINEST + 1)[:, None]
        bend = 0.1 * np.arange(FRAMES) * mixed
        lam = -6 + 8 * (position + bend * position * (1 - position))
        clean = jnp.zeros((1, FRAMES), jnp.float32)
        levels = jnp.concatenate([process.inv_lam(jnp.asarray(lam)).astype(jnp.float32), clean])
        first, last = levels[0, 0].astype(float), levels[FINEST, 0].astype(float)
        begin = mixture_end(noise, float(process.alpha(first)), float(process.sigma(first)))
        end = mixture_end(noise, float(process.alpha(last)), float(process.sigma(last)))
        denoise, key = mixture_denoiser(process), jax.random.key(0)
        run = jax.jit(lambda matrix, x: sample(denoise, solver, process, matrix, x, key).x)
        rows = np.arange(FINEST + 1)[:, None]
        lag = 3 * np.arange(FRAMES) * mixed
        found = []
        for steps in STEPS:
            index = np.clip(np.r_[rows, rows[-1] + 1 + rows[:10]] - lag, 0, steps)
            matrix = from_index(levels, index * (FINEST // steps))
            found.append(np.abs(run(matrix, jnp.asarray(begin)) - end).mean())
        return np.array(found)


def orders(solver: Solver, process: Process, mixed: bool = False) -> np.ndarray:
    """Returns the observed order of each halving of the step."""
    found = errors(solver, process, mixed)
    return np.log2(found[:-1] / found[1:])


def row(name: str) -> str:
    """Returns the row of the README's table for the case `name`."""
    solver, order = CASES[name]
    measured = [orders(solver, process)[-1] for process in PROCESSES.values()]
    cells = " | ".join(f"{value:.1f}" for value in measured)
    return f"| {name} | {solver.evaluations} | {order} | {cells} |"


def table() -> str:
    """Returns the README's table, measured anew."""
    head = ["| solver | evaluations | order | flow | cosine |", "|---|---|---|---|---|"]
    return "\n".join([*head, *map(row, CASES)])


def main() -> None:
    """Prints the table; with `--write` puts it in the place of the README's."""
    made = table()
    print(made)
    if "--write" in sys.argv[1:]:
        old = re.compile(r"^\| solver \|.*?\n(?=\n)", re.MULTILINE | re.DOTALL)
        README.write_text(old.sub(made + "\n", README.read_text(), count=1))


if __name__ == "__main__":
    main()
