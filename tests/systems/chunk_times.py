"""Whether a chunk of a stream takes as long as ever, and its memory is the same to the byte.

python -m tests.systems.chunk_times CHUNKS WEIGHTS SYSTEM...

A chunk is made, decoded and fetched, and the processor time of the process is taken; the clock is
beside it, which others on the machine move too. The first ten chunks, in which caches fill and
programs are compiled, are left out. `slope` is that of the least squares line through the times of
the others, in per cent of their median for a thousand chunks, with its standard error, once in
blocks of `BLOCK` chunks, so that neighbours need not be independent. `bytes` is the size of all
that a stream carries from chunk to chunk, at first and at last, `held` that of all arrays of the
process.
"""

import gc
import sys
import time
import warnings
from typing import Any

import jax
import numpy as np

import jvdm

PROMPT, FIRST, BLOCK = "a large red ball rolls to the left", 10, 30


def bytes_of(tree: Any) -> int:
    """Returns the size of the arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))


def line(times: np.ndarray) -> tuple[float, float, float]:
    """Returns the median, and slope and error of the line through means of blocks, a thousand."""
    means = times[: len(times) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1)
    at = np.arange(len(means)) * BLOCK / 1000
    at = at - at.mean()
    slope = (at * means).sum() / (at**2).sum()
    rest = means - means.mean() - slope * at
    error = np.sqrt((rest**2).sum() / (len(means) - 2) / (at**2).sum())
    return float(np.median(times)), float(slope), float(error)


def row_of(weights: str, system: str, chunks: int) -> str:
    """Returns the row of a system."""
    pipe = jvdm.load(weights, system=system, progress=False)
    session, spent, clock, sizes, held = pipe.session(PROMPT, seed=0), [], [], [], []
    for chunk in range(chunks):
        began = time.process_time(), time.perf_counter()
        session, _ = session.step()
        spent.append(1e3 * (time.process_time() - began[0]))
        clock.append(1e3 * (time.perf_counter() - began[1]))
        if chunk in (FIRST, chunks - 1):
            gc.collect()
            sizes.append(bytes_of((session.run.state, session.run.decoder)))
            held.append(sum(array.nbytes for array in jax.live_arrays()))
    cells = []
    for name, times in (("processor", spent), ("clock", clock)):
        median, slope, error = line(np.asarray(times[FIRST:]))
        share = 100 / median
        cells.append(
            f"{name} {median:6.1f} ms, slope {slope * share:+.1f} +- {error * share:.1f} %"
        )
    same = "the same" if sizes[0] == sizes[1] else f"then {sizes[1]}"
    same_held = "the same" if held[0] == held[1] else f"then {held[1]}"
    told = f"bytes {sizes[0]}, {same}; held {held[0]}, {same_held}"
    return f"{system:<18}{'; '.join(cells)}; {told}; {session.frames} frames"


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "frames are more than")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {sys.argv[1]} chunks")
    for name in sys.argv[3:]:
        print(row_of(sys.argv[2], name, int(sys.argv[1])), flush=True)
