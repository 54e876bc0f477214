"""Whether a device holds a training step: said before the step is compiled for minutes."""

import sys

import jax
from jax.sharding import Mesh

from jvdm.arrays import PyTree
from jvdm.errors import DeviceMemoryError
from jvdm.machine import device_memory
from jvdm.parallel import parts
from jvdm.pricing import amount
from jvdm.products import device_bytes
from jvdm.training.state import TrainState
from jvdm.training.step import Step

DOUBT = 1.25
"""How many times the memory a step must seem to need to be refused: XLA may keep less."""


def check(step: Step, frozen: PyTree, state: TrainState, data: PyTree, mesh: Mesh) -> None:
    """Refuses a step that a device cannot hold; says so where that is in doubt.

    State, data and gradients are certain. What the loss leaves for its gradient is what a compiler
    is thought to keep (`jvdm.training.residuals`).

    Args:
        step: The step.
        frozen: What is not trained, on the devices.
        state: Shapes of the state, placed.
        data: State of the source, placed.
        mesh: The devices.

    Raises:
        DeviceMemoryError: With what is needed for what, and what there is.
    """
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    limit = device_memory(here[0])
    if limit is None:
        return
    limit //= len(here) if here[0].platform == "cpu" else 1  # which share the host's
    sizes = {
        "parameters, average and optimizer": device_bytes(state),
        "gradients": device_bytes(state.params),
        "data": device_bytes((frozen, data)),
        "activations": step.kept(frozen, state, data) // parts(mesh),
    }
    needed = sum(sizes.values())
    if needed <= limit:
        return
    each = ", ".join(f"{name} {amount(size)}" for name, size in sizes.items())
    what = f"a training step needs about {amount(needed)} of a device: {each}"
    why = f"{here[0].device_kind} has {amount(limit)}"
    if needed <= DOUBT * limit and needed - sizes["activations"] <= limit:
        print(f"{what}; {why}: it may not fit", file=sys.stderr)
        return
    raise DeviceMemoryError(what, why, _fix(sizes))


def _fix(sizes: dict[str, int]) -> str:
    of_videos = sizes["data"] + sizes["activations"]
    if 2 * of_videos > sum(sizes.values()):
        return (
            "use a smaller --batch-size, more devices, or a network that computes more again: remat"
        )
    return "split them over more devices: --mesh fsdp=4"
