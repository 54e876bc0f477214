"""Runs in a process of eight CPU devices: compiles the training step of a config for meshes.

`python -m tests.parallel.compiled nano MESH ...`; XLA says on stderr where it keeps whole copies of
an array that is split ("involuntary full rematerialization").
"""

import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

from jvdm import works  # noqa: E402
from jvdm.parallel import mesh_of, using  # noqa: E402
from tests.generate.nano import QUICKLY  # noqa: E402

if __name__ == "__main__":
    for description in sys.argv[2:]:
        mesh = mesh_of(description)
        work = works.step_of_config(sys.argv[1], mesh)
        places = tuple(
            name and jax.tree.map(lambda leaf: leaf.sharding, work.held[name])
            for name in work.gives
        )
        jitted = jax.jit(work.run, out_shardings=places)
        with using(mesh):
            jitted.lower(*work.held.values()).compile(compiler_options=QUICKLY)
        print(description)
