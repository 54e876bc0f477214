"""What the loop costs by itself: `python -m tests.samplers.cost [--height 60] [--width 104]`.

A network that says nothing takes a matrix of 50 rows and 32 frames through every solver. One
program serves all matrices of that shape, and nothing is sent between host and device in a run.
Runs on the accelerator that JAX finds; times are the least of five runs.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.samplers import (
    SOLVERS,
    Call,
    Denoised,
    Solver,
    TimestepMatrix,
    from_index,
    linspace_levels,
    rectified_flow,
    sample,
    shift_levels,
)

ROWS, FRAMES, CHANNELS, RUNS = 50, 32, 16, 5
FLOW = rectified_flow()


def nothing(x: jax.Array, call: Call, carry: None) -> tuple[Denoised, None]:
    """A network that costs nothing: it says that `x` is both data and noise."""
    return Denoised(x, x), carry


def matrices() -> dict[str, TimestepMatrix]:
    """Returns matrices of one shape: 50 rows, 32 frames, 50 steps of a grid."""
    levels, rows = shift_levels(linspace_levels(ROWS), 3.0), np.arange(ROWS + 1)[:, None]
    together = np.broadcast_to(rows, (ROWS + 1, FRAMES))
    wave = np.clip(rows - np.arange(FRAMES)[None], 0, ROWS - FRAMES + 1)
    wave = np.where(wave == wave.max(), ROWS, wave)
    late = np.clip(rows - np.arange(FRAMES)[None] % 4, 0, ROWS)
    late[-1] = ROWS
    steps = {"together": together, "wave": wave, "late": late}
    return {name: from_index(levels, index) for name, index in steps.items()}


def runner(solver: Solver) -> tuple[Callable[..., jax.Array], list[str]]:
    """Returns the program of a whole run, and a list that grows when it is traced."""
    traced: list[str] = []

    @jax.jit
    def run(matrix: TimestepMatrix, x: jax.Array, key: jax.Array) -> jax.Array:
        traced.append(str(solver))
        return sample(nothing, solver, FLOW, matrix, x, key).x

    return run, traced


class Cost(NamedTuple):
    """Milliseconds of a row by matrix, and how often the program was compiled."""

    ms_per_row: dict[str, float]
    programs: int


def cost(solver: Solver, cells: tuple[int, ...]) -> Cost:
    """Measures a solver on latents of these cells and channels.

    Raises:
        RuntimeError: From JAX, if a run sends anything between host and device.
    """
    run, traced = runner(solver)
    x, key = jnp.ones((1, FRAMES, *cells)), jax.random.key(0)
    found = {}
    for name, matrix in jax.device_put(matrices()).items():
        jax.block_until_ready(run(matrix, x, key))
        times = []
        with jax.transfer_guard("disallow"):
            for _ in range(RUNS):
                begun = time.perf_counter()
                run(matrix, x, key).block_until_ready()
                times.append(time.perf_counter() - begun)
        found[name] = 1e3 * min(times) / ROWS
    return Cost(found, len(traced))


def main() -> None:
    """Prints a line for each solver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=60, help="cells of latents")
    parser.add_argument("--width", type=int, default=104, help="cells of latents")
    sizes = parser.parse_args()
    cells = (sizes.height, sizes.width, CHANNELS)
    shape = "x".join(map(str, (FRAMES, *cells)))
    print(f"{jax.devices()[0].device_kind}: {ROWS} rows, latents {shape}, ms per row")
    for name, solver in SOLVERS.items():
        measured = cost(solver, cells)
        times = "  ".join(f"{matrix} {ms:7.4f}" for matrix, ms in measured.ms_per_row.items())
        print(f"{name:>14}  {times}  programs {measured.programs}")


if __name__ == "__main__":
    main()
