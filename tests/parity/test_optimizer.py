"""Steps of the optimizer against PyTorch's AdamW and Muon, on the same gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm.training.optimizer import Optimizer
from tests.parity.compare import assert_equal

torch = pytest.importorskip("torch", reason="parity tests need PyTorch")

pytestmark = pytest.mark.parity

NUM_STEPS = 12
# PyTorch orthogonalises in bfloat16: 8 bits, amplified by five iterations of slope up to 3.4.
MUON_ERROR = 0.05


@pytest.fixture
def start(rng):
    return {
        "layers": {"kernel": rng.standard_normal((8, 12)).astype(np.float32)},
        "gain": rng.standard_normal(8).astype(np.float32),
    }


@pytest.fixture
def gradients(rng):
    """One of them is large enough to be clipped."""
    scales = np.where(np.arange(NUM_STEPS) == 3, 10.0, 0.1).astype(np.float32)
    return [
        {
            "layers": {"kernel": scale * rng.standard_normal((8, 12)).astype(np.float32)},
            "gain": scale * rng.standard_normal(8).astype(np.float32),
        }
        for scale in scales
    ]


def ours(settings: Optimizer, start, gradients) -> Any:
    transform = settings.build(NUM_STEPS)
    params: Any = jax.tree.map(jnp.asarray, start)
    state = transform.init(params)
    for gradient in gradients:
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def theirs(settings: Optimizer, start, gradients, make):
    """Runs the optimizers that `make(kernel, gain)` returns, each with a factor on the rate."""
    kernel, gain = (
        torch.nn.Parameter(torch.tensor(array))
        for array in (start["layers"]["kernel"], start["gain"])
    )
    schedule = settings.schedule(NUM_STEPS)
    optimizers = make(kernel, gain)
    for step, gradient in enumerate(gradients):
        kernel.grad = torch.tensor(gradient["layers"]["kernel"])
        gain.grad = torch.tensor(gradient["gain"])
        torch.nn.utils.clip_grad_norm_([kernel, gain], settings.clip_norm)
        for optimizer, factor in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * np.asarray(schedule(step)).item()
            optimizer.step()
    return kernel.detach(), gain.detach()


def adamw(parameters, weight_decay):
    return torch.optim.AdamW(parameters, betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay)


def test_adamw(start, gradients):
    settings = Optimizer(kind="adamw", learning_rate=1e-2, warmup_steps=3)

    def make(kernel, gain):
        return [(adamw([kernel], settings.weight_decay), 1.0), (adamw([gain], 0.0), 1.0)]

    params = ours(settings, start, gradients)
    kernel, gain = theirs(settings, start, gradients, make)
    assert_equal(params["layers"]["kernel"], kernel)
    assert_equal(params["gain"], gain)


def test_muon(start, gradients):
    settings = Optimizer(kind="muon", learning_rate=1e-2, warmup_steps=3)

    def make(kernel, gain):
        muon = torch.optim.Muon(
            [kernel],
            momentum=0.95,
            weight_decay=settings.weight_decay / settings.matrix_scale,
            adjust_lr_fn="match_rms_adamw",
        )
        return [(muon, settings.matrix_scale), (adamw([gain], 0.0), 1.0)]

    params = ours(settings, start, gradients)
    kernel, _ = theirs(settings, start, gradients, make)
    moved = np.asarray(params["layers"]["kernel"]) - start["layers"]["kernel"]
    assert_equal(moved, kernel.numpy() - start["layers"]["kernel"], MUON_ERROR)
