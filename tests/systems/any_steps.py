"""What students make in one step to many: the table of the system anyflow.

python -m tests.systems.any_steps CLIPS WEIGHTS[:guided]...

WEIGHTS are a folder or embedded weights. Each is sampled in 1, 2, 4, 8 and 16 jumps at the levels
of nano, without guidance; with `guided`, in as many steps with nano's own. A number is the energy
distance, without bias, between the latents of whole clips that are made for the captions of
held-out films and those of the films: 0 for equal laws. `world` is one half of the films against
the other.
"""

import sys
import time

import jax

import jvdm
from jvdm.configs import nano
from tests.systems.own_frames import energy, films, made

COUNTS = (1, 2, 4, 8, 16)


def main(count: int, folders: list[str]) -> None:
    """Prints a row for each weights folder."""
    said, true = films(jvdm.load("nano", progress=False), count, nano.WORLD.num_frames)
    print(f"{'world':<32}{energy(true[::2], true[1::2]):.3f}", flush=True)
    print(f"{'calls of a clip':<32}" + " ".join(f"{steps:7}" for steps in COUNTS), flush=True)
    for named in folders:
        folder, guided, _ = (named.split(":") + ["", ""])[:3]
        few = {"solver": "flow_map", "guidance": "none", "matrix": "synchronous"}
        began, cells = time.perf_counter(), []
        for steps in COUNTS:
            levels = {"levels": "shifted", "levels.num_steps": str(steps), "levels.shift": "2.0"}
            chosen = levels if guided else levels | few
            pipe = jvdm.load(folder, sampling=chosen, progress=False)
            cells.append(energy(made(pipe, said, nano.WORLD.num_frames, None), true))
        seconds = time.perf_counter() - began
        print(
            f"{named:<32}" + " ".join(f"{x:7.3f}" for x in cells) + f"  {seconds:.0f} s", flush=True
        )


if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {sys.argv[1]} clips")
    main(int(sys.argv[1]), sys.argv[2:])
