"""Runs in a process of eight CPU devices: what meshes compute, and what one device does.

`python -m tests.parallel.everywhere` prints one line of JSON: the largest difference of each
quantity on each mesh, of the largest number where there is one.
"""

import json
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jvdm.attention import Dense, Draft  # noqa: E402
from jvdm.models import Conditions, TextStates, VideoDiT  # noqa: E402
from jvdm.models.wan import WanDiT  # noqa: E402
from jvdm.parallel import mesh_of, place, using  # noqa: E402
from jvdm.samplers import Call  # noqa: E402
from tests.generate.nano import QUICKLY, drawn  # noqa: E402

# Three heads, 72 tokens and two videos: most of it does not divide. Gradients are those of every
# parameter; `remat` is off because it doubles the time of compilation and is XLA's matter.
SIZES: Any = {"width": 48, "depth": 2, "latent_channels": 4, "dtype": "float32", "remat": "none"}
NETWORKS = {
    "dit": VideoDiT(**SIZES, head_dim=16, rotary_axes=(4, 6, 6), policy=Draft(0.3, block=4)),
    "wan": WanDiT(**SIZES, head_dim=12, mlp_width=64, policy=Dense()),
}
MESHES = {"dit": ("ring=4,sequence=2",), "wan": ("data=2,fsdp=2,tensor=2",)}
TOLD = Conditions(TextStates(jax.random.normal(jax.random.key(2), (2, 5, 24)), jnp.array([5, 3])))
T = jnp.linspace(0.1, 1.0, 6).reshape(2, 3)
X = jax.random.normal(jax.random.key(1), (2, 3, 8, 12, 4))


def off(one, other):
    """Returns the largest difference of two trees, in parts of the largest number of a leaf."""

    def of(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.abs(a - b).max() / max(np.abs(a).max(), 1e-3)

    return max(map(of, jax.tree.leaves(one), jax.tree.leaves(other)))


def compare(name):
    """Returns how far each mesh is off: loss, prediction and policies' states, gradients."""
    network, found = NETWORKS[name], {}
    params = drawn(network.init, jax.random.key(0), X, Call.at(T), TOLD)["params"]
    # Gates that are open, so that everything reaches the loss.
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(3), leaf.shape), params
    )

    def run(mesh):
        def loss(params, x):
            with using(mesh):
                y, carry = network.apply({"params": params}, x, Call.at(T), TOLD)
            return jnp.mean(jnp.square(y)), (y, carry.layers)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)
        return step(params if mesh is None else place(params, mesh), X)

    alone = run(None)
    for description in MESHES[name]:
        made = run(mesh_of(description))
        found[f"{name} {description}"] = {
            "prediction": off(alone[0], made[0]),
            "gradient": off(alone[1], made[1]),
        }
    return found


if __name__ == "__main__":
    print(json.dumps({key: value for name in NETWORKS for key, value in compare(name).items()}))
