"""Changes beside the weights: those of fused weights, at any strength, in every product."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import Dense
from jvdm.models import Conditions, TextStates
from jvdm.models.low_rank import Adapted, adapted_product, variables
from jvdm.models.wan import WanDiT, experts
from jvdm.samplers import Call
from jvdm.weights import lora
from jvdm.weights.lora import Adapter
from jvdm.weights.safetensors import flatten, unflatten
from tests.models import test_ltx
from tests.models.test_wan import FRAMES, TOLD, WAN, X, parameters
from tests.parity.lora_file import LTX_TABLE, SCALE, TABLE, write_file, write_ltx_file
from tests.parity.lora_file import factors as factors_of_file
from tests.parity.references import Reference, inputs, off
from tests.vae.nano import QUICK

RANKS = (2, 3)
NAMES = [name for name in flatten(parameters()) if name.endswith("kernel")]


def factors(rank, seed):
    """Returns random factors of this rank for every kernel."""
    rng, leaves, made = np.random.RandomState(seed), flatten(parameters()), {}
    for name in NAMES:
        *layers, width, size = leaves[name].shape
        for end, shape in (("down", (width, rank)), ("up", (rank, size))):
            made[f"{name}_{end}"] = rng.normal(0, 0.2, (*layers, *shape)).astype(np.float32)
    return unflatten(made)


LOW_RANK = tuple(factors(rank, seed) for seed, rank in enumerate(RANKS))
OFFSET = {"patch_in": {"bias": inputs(parameters()["patch_in"]["bias"].shape)[0]}}


def adapted(*strengths):
    return Adapted(parameters(), LOW_RANK, (OFFSET, {}), jnp.array(strengths, jnp.float32))


def summed(*strengths):
    """Returns the parameters with the products added by NumPy."""
    leaves = dict(flatten(parameters()))
    for name in NAMES:
        for strength, tree in zip(strengths, map(flatten, LOW_RANK), strict=True):
            change = tree[f"{name}_down"] @ tree[f"{name}_up"]
            leaves[name] = leaves[name] + np.float32(strength) * change
    bias = "patch_in/bias"
    leaves[bias] = leaves[bias] + np.float32(strengths[0]) * flatten(OFFSET)[bias]
    return unflatten(leaves)


def predict(params, t=FRAMES, model=WAN):
    return model.apply(variables(params), X, Call.at(t), TOLD)[0]


@functools.cache
def runner(model: Any = WAN) -> Any:  # Any: pyright takes modules for unhashable
    return jax.jit(functools.partial(predict, model=model), compiler_options=QUICK)


def test_they_are_the_fused_weights_at_any_strength_by_one_program():
    run = runner()
    plain = run(parameters())
    compiled = run._cache_size()
    for strengths in ((1.0, 1.0), (0.5, -2.0), (0.0, 1.5)):
        assert off(run(adapted(*strengths)), run(summed(*strengths))) < 2e-5
        assert off(run(adapted(*strengths)), plain) > 0.1
    np.testing.assert_array_equal(run(adapted(0.0, 0.0)), plain)
    assert run._cache_size() == compiled + 1


@pytest.mark.slow
def test_every_kernel_is_changed_and_its_gradient_is_that_of_the_fused_weights():
    target = inputs(X.shape)[0]

    def loss(params):
        return jnp.mean((predict(params) - target) ** 2)

    slope = jax.jit(jax.grad(loss), compiler_options=QUICK)
    found = slope(adapted(1.0, 1.0))
    whole = flatten(slope(summed(1.0, 1.0)))
    mine, theirs = flatten(found.low_rank[1]), flatten(LOW_RANK[1])
    for name in NAMES:
        down, up = (theirs[f"{name}_{end}"] for end in ("down", "up"))
        back = whole[name]
        wanted = {"down": back @ up.swapaxes(-1, -2), "up": down.swapaxes(-1, -2) @ back}
        for end, expected in wanted.items():
            assert np.std(expected) > 0
            assert off(mine[f"{name}_{end}"], expected) < 1e-3, (name, end)
    assert off(found.params["patch_in"]["kernel"], whole["patch_in/kernel"]) < 1e-3


@pytest.mark.slow
def test_layers_that_policies_divide_and_experts_have_theirs():
    class Halves(Dense):
        """Divides the layers."""

        def in_layers(self, depth):
            return ((self, 1), (Dense(), depth - 1))

    one = runner()(adapted(1.0, 0.5))
    np.testing.assert_array_equal(runner(WAN.clone(policy=Halves()))(adapted(1.0, 0.5)), one)
    two: Any = experts(WAN, 875.0)
    both = {"high": parameters(), "low": parameters(1)}
    changes = ({"high": LOW_RANK[0]}, {"low": LOW_RANK[1]})
    mine = Adapted(both, changes, ({"high": OFFSET}, {}), jnp.array([1.0, 1.0]))
    high, low = (jnp.full((2, 3), level) for level in (900.0, 100.0))
    np.testing.assert_array_equal(runner(two)(mine, high), runner()(adapted(1.0, 0.0), high))
    alone = Adapted(both["low"], (LOW_RANK[1],), ({},), jnp.array([1.0]))
    np.testing.assert_array_equal(runner(two)(mine, low), runner()(alone, low))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_rounds_the_sum_once(dtype):
    x, kernel, down, up = (jnp.asarray(y) for y in inputs((5, 8), (8, 6), (8, 2), (2, 6)))
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    total = (kernel.astype(jnp.float32) + down @ up).astype(dtype)
    made = adapted_product(x, kernel, down, up)
    assert made.dtype == x.dtype
    if dtype == "float32":
        np.testing.assert_allclose(made, x @ total, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(made, x @ total)


def test_the_file_of_a_training_is_what_diffusers_makes_of_it(tmp_path):
    changes = lora.read(Adapter(write_file(tmp_path / "x.safetensors")), TABLE, parameters())
    clip = jnp.broadcast_to(jnp.array([500.0, 200.0])[:, None], (2, 3))
    made = runner()(lora.fused(parameters(), TABLE, [(changes, 1.0)]), clip)
    stored = Reference("wan_lora").outputs["clip"]
    assert off(made.transpose(0, 4, 1, 2, 3), stored) < 1e-5
    assert off(stored, Reference("wan_transformer").outputs["clip"]) > 0.1
    found = flatten(lora.factors(changes, TABLE, parameters()).low_rank)
    for name, factor in flatten(factors_of_file()).items():
        scaled = factor * np.float32(1.0 if name.endswith("down") else SCALE)
        np.testing.assert_array_equal(found[name], scaled)


def test_the_file_of_a_training_of_ltx_is_what_diffusers_makes_of_it(tmp_path):
    params, adapter = test_ltx.parameters(), Adapter(write_ltx_file(tmp_path / "x.safetensors"))
    changes = lora.read(adapter, LTX_TABLE, params)
    fused = jax.tree.map(jnp.asarray, lora.fused(params, LTX_TABLE, [(changes, 1.0)]))
    clip = jnp.broadcast_to(jnp.array([500.0, 200.0])[:, None], (2, 3))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        told = test_ltx.TOLD
        return test_ltx.LTX.apply({"params": params}, test_ltx.X, Call.at(clip), told)[0]

    stored = Reference("ltx_lora").outputs["clip"]
    assert off(run(fused), stored) < 1e-4
    assert off(stored, Reference("ltx_transformer").outputs["clip"]) > 0.1


def test_one_layer_is_joined_at_a_time():
    """The plan of a call has not the memory for the kernels of all layers."""
    network = WanDiT(width=128, depth=16, head_dim=64, mlp_width=512, dtype="float32")
    told = Conditions(TextStates(jnp.zeros((1, 1, 8)), jnp.array([1])))
    x = jnp.zeros((1, 1, 2, 2, 16))

    def call(params):
        return network.apply(variables(params), x, Call.at(jnp.zeros((1, 1))), told)[0]

    def init():
        return network.init(jax.random.key(0), x, Call.at(jnp.zeros((1, 1))), told)["params"]

    params = jax.eval_shape(init)
    kernels = {k: x.shape for k, x in flatten(params["layers"]).items() if k.endswith("kernel")}
    factors = {f"layers/{k}_down": (16, i, 1) for k, (_, i, _) in kernels.items()}
    factors |= {f"layers/{k}_up": (16, 1, o) for k, (_, _, o) in kernels.items()}
    tree = {k: jax.ShapeDtypeStruct(shape, "float32") for k, shape in factors.items()}
    mine = Adapted(params, (unflatten(tree),), ({},), jax.ShapeDtypeStruct((1,), "float32"))
    run: Any = jax.jit(call, compiler_options=QUICK)
    plans = (run.lower(one).compile().memory_analysis() for one in (params, mine))
    plain, beside = (plan.temp_size_in_bytes for plan in plans)
    layer = 4 * sum(i * o for _, i, o in kernels.values())
    assert beside - plain < 4 * layer
