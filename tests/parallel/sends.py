"""Runs in a process of eight CPU devices: what a step sends, and what was foreseen of it.

`python -m tests.parallel.sends MESH ...` prints a line of JSON for each: `sent`, as XLA's program
has it, and `foreseen`.
"""

import json
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

from jvdm import works  # noqa: E402
from jvdm.families import FAMILIES  # noqa: E402
from jvdm.parallel import mesh_of, using  # noqa: E402
from jvdm.parallel.collectives import sent  # noqa: E402
from jvdm.parallel.foreseen import foreseen  # noqa: E402
from jvdm.scaling import Velocity  # noqa: E402
from tests.generate.nano import QUICKLY  # noqa: E402

SIZES = {"num_attention_heads": 4, "ffn_dim": 128}
SMALL = FAMILIES["wan-tiny"].of(**SIZES)._replace(latents=(4, 8, 8, 16), prompt=(8, 8))
"""64 tokens: as many on every device, and large beside what XLA sends of the first layers."""

if __name__ == "__main__":
    works.FAMILIES = {"small": SMALL}
    # In float32: XLA for CPUs computes with it where the program says bfloat16.
    works.Velocity = lambda family, dtype: Velocity(family, "float32")
    for description in sys.argv[1:]:
        mesh = mesh_of(description)
        work = works.step_of_network("small", mesh)
        places = tuple(
            name and jax.tree.map(lambda leaf: leaf.sharding, work.held[name])
            for name in work.gives
        )
        jitted = jax.jit(work.run, out_shardings=places)
        with using(mesh):
            traced = jitted.trace(*work.held.values())
            counted = foreseen(traced.jaxpr.jaxpr, work.held["parameters"], mesh, trains=True)
            compiled = traced.lower().compile(compiler_options=QUICKLY)
        found = {"sent": dict(sent(compiled.as_text() or "")), "foreseen": dict(counted)}
        print(json.dumps(found), flush=True)
