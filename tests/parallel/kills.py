"""Kills one of several processes at random points, again and again; compares with a quiet one.

`python -m tests.parallel.kills FOLDER [COUNT] [PROCESSES]`, 20 and 2 unless told otherwise, prints
a line for each and ends with 0 if every one was killed before the run was done, the others ended
and said who was lost, nothing was lost that had been saved, and the checkpoint at the end has the
bits of a run that nobody killed. Too long for the tests: minutes.

Who was lost is said by all others but those that JAX or Gloo, which joins CPUs, aborts first: where
process 0 was killed with JAX's service, or where another one's next sum came before the news.
"""

import signal
import sys
import time
from pathlib import Path

import numpy as np

from jvdm.training.checkpoint import finished_steps, read_checkpoint
from tests.parallel import several

STEPS = 9  # that are done between two points, at most


def main(folder: Path, count: int, size: int) -> int:
    """Returns how many arrays differ at the end, 1 at least if anything else went wrong."""
    quiet, killed = folder / "quiet", folder / "killed"
    arguments = (f"steps={STEPS * (count + 1)}", "clip=0.02")
    assert all(code == 0 for code, _, _ in several.finish(several.start(quiet, size, *arguments)))
    rng, last = np.random.default_rng(0), 0
    for turn in range(count):
        (killed / "heartbeat.json").unlink(missing_ok=True)  # that of the last turn
        running = several.start(killed, size, *arguments)
        wanted = last + int(rng.integers(STEPS))  # at 0 it is being prepared
        several.wait_for(running, lambda wanted=wanted: several.step_of(killed) >= wanted)
        time.sleep(rng.uniform(0, 0.3))
        victim = int(rng.integers(size))
        running[victim].kill()
        ends = several.finish(running)
        others = [end for process, end in enumerate(ends) if process != victim]
        said = [
            (f"process {victim} of {size}" in errors and "was lost" in errors)
            for _, _, errors in others
        ]
        aborted = [
            (victim == 0 and "another task died" in errors) or "gloo/transport" in errors
            for _, _, errors in others
        ]
        told = all(map(max, said, aborted)) and (size == 2 or any(said))
        steps = finished_steps(killed / "checkpoints")
        codes = [code for code, _, _ in others]
        found = f"process {victim} ended with {ends[victim][0]}, the others with {codes}"
        print(f"{turn}: {found}, {sum(said)} named it, saved {steps}", flush=True)
        newest = max(steps, default=0)
        if newest < last or ends[victim][0] != -signal.SIGKILL or {0, 2} & {*codes} or not told:
            print(*(errors for _, _, errors in others), sep="\n")
            return 1
        last = newest
    ends = several.finish(several.start(killed, size, *arguments))
    assert all(code == 0 for code, _, _ in ends), ends
    arrays, other = (read_checkpoint(one / "checkpoints")[0] for one in (quiet, killed))
    different = [name for name in arrays if arrays[name].tobytes() != other[name].tobytes()]
    print(f"{len(different)} of {len(arrays)} arrays differ from those of a quiet run")
    return len(different)


if __name__ == "__main__":
    count, size = (*map(int, sys.argv[2:]), *(20, 2)[len(sys.argv) - 2 :])
    sys.exit(main(Path(sys.argv[1]), count, size))
