"""A training step that does not fit is refused before it is compiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jvdm.errors import DeviceMemoryError
from jvdm.parallel import batch_sharding, mesh_of
from jvdm.recipes import load_experiment
from jvdm.train import train
from jvdm.training import memory, setup
from jvdm.training.objective import GivenBatch
from jvdm.training.optimizer import Optimizer
from jvdm.training.state import init_state
from jvdm.training.step import make_step
from tests.training import toy

WIDTH, CLIPS = 64, 1024


class Cubes:
    """A loss that leaves its products, whose gradient is of their third power."""

    def init(self, key):
        return {"layers": {"up": {"kernel": jax.random.normal(key, (WIDTH, WIDTH))}}}

    def loss(self, params, batch, call):
        return jnp.mean((batch @ params["layers"]["up"]["kernel"]) ** 3), {}


def of(mesh, objective=None) -> Any:
    """Returns a step with the shapes that `check` is given."""
    objective = objective or Cubes()
    batch = jax.ShapeDtypeStruct((CLIPS, WIDTH), jnp.float32, sharding=batch_sharding(mesh))
    transform = setup.transform_of(objective, Optimizer(kind="adamw"), 10)
    step = make_step(objective, GivenBatch(batch), transform, CLIPS, 0.9)
    return step, {}, setup.state_shapes(objective, transform, 0, mesh), batch, mesh


KERNEL, PRODUCTS = 4 * WIDTH**2, 4 * CLIPS * WIDTH


def test_what_a_loss_leaves_is_counted():
    step, *given = of(mesh_of("data=4"))
    kept = step.kept(*given[:3])
    assert kept == PRODUCTS  # the clips are given, and the slope of the power is made again


class Twice(Cubes):
    """Whose kernel is read again for the gradient."""

    def loss(self, params, batch, call):
        kernel = params["layers"]["up"]["kernel"]
        return jnp.mean((batch @ kernel) @ kernel), {}


def test_parameters_that_a_gradient_reads_are_no_activations():
    step, *given = of(mesh_of("data=4"), Twice())
    # What comes of the clips: the mean leaves nothing.
    assert step.kept(*given[:3]) == PRODUCTS


@pytest.mark.parametrize(("mesh", "parts"), [("data=4", 1), ("fsdp=4", 4)])
def test_state_and_gradients_are_split_over_fsdp_and_what_is_left_over_videos(
    mesh, parts, monkeypatch, capsys
):
    given = of(mesh_of(mesh))
    kept = given[0].kept(*given[1:4]) // 4
    state = 5 * KERNEL // parts + 2 * kept  # with average, two moments, gradients and clips
    for share, said in ((1.1, ""), (0.9, "it may not fit"), (0.7, None)):
        monkeypatch.setattr(memory, "device_memory", lambda _, share=share: int(4 * share * state))
        if said is None:
            with pytest.raises(DeviceMemoryError, match="activations .*--batch-size"):
                memory.check(*given)
        else:
            memory.check(*given)
            assert said in capsys.readouterr().err


def test_a_state_that_does_not_fit_is_split_further(monkeypatch):
    given = of(mesh_of("data=1", jax.devices()[:1]))
    monkeypatch.setattr(memory, "DOUBT", 1e9)  # of what is certain there is no doubt
    monkeypatch.setattr(memory, "device_memory", lambda _: 3 * KERNEL)
    step = given[0]._replace(kept=lambda *_: 0)
    with pytest.raises(DeviceMemoryError, match="--mesh fsdp=4"):
        memory.check(step, given[1], given[2], {}, given[4])
    monkeypatch.setattr(memory, "device_memory", lambda _: None)  # nobody knows
    memory.check(step, *given[1:])


def test_recomputation_leaves_less():
    objective = load_experiment("nano").objective
    model = objective.system.model
    latents = jax.ShapeDtypeStruct((8, 3, 8, 8, model.latent_channels), jnp.float32)
    batch = {"latents": latents, "tokens": jax.ShapeDtypeStruct((8, 64), jnp.int32)}
    transform, kept = Optimizer().build(10), []
    for remat in ("none", "matmuls", "all"):
        system = dataclasses.replace(objective.system, model=model.clone(remat=remat))
        mine = dataclasses.replace(objective, system=system)
        state = jax.eval_shape(lambda mine=mine: init_state(mine, transform, 0))
        kept.append(make_step(mine, GivenBatch(batch), transform, 8, 0.9).kept({}, state, batch))
    assert kept[0] > 1.2 * kept[1] > 1.2 * kept[2] > 0


def test_a_run_says_so_before_it_compiles(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "device_memory", lambda _: 8)
    monkeypatch.setattr(setup, "compiler_options", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(DeviceMemoryError, match="a training step needs about"):
        train(toy.experiment(), tmp_path)
