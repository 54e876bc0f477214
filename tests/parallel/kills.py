"""Kills one of two processes at random points, again and again, and compares with a quiet run.

`python -m tests.parallel.kills FOLDER [COUNT]` prints a line for each and ends with 0 if the
checkpoint at the end has the bits of a run that nobody killed. Too long for the tests.
"""

import sys
import time
from pathlib import Path

import numpy as np

from jvdm.training.checkpoint import finished_steps, read_checkpoint
from tests.parallel import several

ARGUMENTS = ("steps=80", "clip=0.02")


def main(folder: Path, count: int) -> int:
    """Returns how many arrays differ at the end."""
    quiet, killed = folder / "quiet", folder / "killed"
    assert all(code == 0 for code, _, _ in several.finish(several.start(quiet, 2, *ARGUMENTS)))
    rng, last = np.random.default_rng(0), 0
    for turn in range(count):
        (killed / "heartbeat.json").unlink(missing_ok=True)  # that of the last turn
        running = several.start(killed, 2, *ARGUMENTS)
        wanted = last + int(rng.integers(9))  # at 0 it is being prepared
        several.wait_for(running, lambda wanted=wanted: several.step_of(killed) >= wanted)
        time.sleep(rng.uniform(0, 0.3))
        victim = int(rng.integers(2))
        running[victim].kill()
        ends = several.finish(running)
        code, _, errors = ends[1 - victim]
        said = f"process {victim} of 2" in errors and "was lost" in errors
        # With process 0 its service ends, and JAX may notice first.
        said |= victim == 0 and "another task died" in errors
        steps = finished_steps(killed / "checkpoints")
        said_so = f"process {victim} killed, the other {code}, said {said}, saved {steps}"
        print(f"{turn}: {said_so}", flush=True)
        newest = max(steps, default=0)
        if newest < last or (ends[victim][0] == -9 and (code == 0 or not said)):
            print(errors)
            return 1
        last = newest
    ends = several.finish(several.start(killed, 2, *ARGUMENTS))
    assert all(code == 0 for code, _, _ in ends), ends
    arrays, other = (read_checkpoint(one / "checkpoints")[0] for one in (quiet, killed))
    different = [name for name in arrays if arrays[name].tobytes() != other[name].tobytes()]
    print(f"{len(different)} of {len(arrays)} arrays differ from those of a quiet run")
    return len(different)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int((sys.argv[2:] or ["20"])[0])))
