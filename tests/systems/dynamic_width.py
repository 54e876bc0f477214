"""What routers of a network cost and save: the loss at equal steps, and programs by their width.

python -m tests.systems.dynamic_width losses [STEPS [NAME ...]]
python -m tests.systems.dynamic_width programs [WEIGHTS [HEIGHT [WIDTH]]]

`losses` trains the shipped nano model on with routers, with some of them, pruned once for all, and
as it is, from the same seed on the same batches, and prints the share of the operations of its
layers and the loss on clips of split `test`, of equal noise and levels, with the standard error of
the difference. `programs` prints operations and time of a call at every width of a bucket.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.configs import dydit, nano
from jvdm.models import Conditions, TextStates
from jvdm.samplers import Call
from jvdm.training.dynamic_matching import DynamicMatching
from jvdm.training.flow_matching import FlowMatching
from tests.systems.equal_steps import CLIPS, HELD_OUT, clips, compared, held_out, train

CLOSED = -1000.0  # what a pruned part is told: no noise opens it, no gradient moves it


def variants() -> dict[str, Any]:
    """Returns objectives by name."""
    ours: Any = dydit.config().objective
    plain = ours.system.model.clone(dynamic=None)
    kept = FlowMatching(dataclasses.replace(ours.system, model=plain), rows=ours.rows)

    def rule(target: float = 0.7, **fields: Any) -> Any:
        model = ours.system.model.clone(dynamic=dataclasses.replace(dydit.RULE, **fields))
        system = dataclasses.replace(ours.system, model=model)
        return dataclasses.replace(ours, system=system, target=target)

    return {
        "nano": kept,
        "dydit .7": rule(),
        "pruned": dataclasses.replace(
            rule(tokens=False, frames=False), weight=0.0, complete_steps=0
        ),
        "width alone": rule(tokens=False, frames=False),
        "tokens and frames alone": rule(timestep=False),
        "dydit .5": rule(0.5),
        "tokens alone": rule(timestep=False, frames=False),
    }


def pruned(params: Any, heads: int, groups: int) -> Any:
    """Closes the parts of every layer with the smallest weights, but for so many.

    The first of each counts in any case, as under routers.
    """
    layers = params["model"]["layers"]
    depth, width = layers["self_attention"]["out"]["kernel"].shape[:2]
    bias = layers["width_router"]["to_parts"]["bias"]
    parts = dydit.RULE.parts(width // 32)
    closed = []
    for kernel, count, keep in (
        (layers["self_attention"]["out"]["kernel"], parts[0], heads),
        (layers["mlp"]["down"]["kernel"], parts[1], groups),
    ):
        sizes = jnp.linalg.norm(kernel.reshape(depth, count, -1), axis=-1)[:, 1:]
        ranks = jnp.argsort(jnp.argsort(-sizes, axis=1), axis=1)
        closed.append(ranks >= keep - 1)
    bias = jnp.where(jnp.concatenate(closed, 1), CLOSED, 0.0).astype(bias.dtype)
    router = layers["width_router"]["to_parts"] | {"bias": bias}
    layers = layers | {"width_router": {"to_parts": router}}
    return params | {"model": params["model"] | {"layers": layers}}


def share(objective: DynamicMatching, params: Any, batch: Any) -> np.ndarray:
    """Returns the share of the operations of the layers at each of eight levels."""
    model, tokens = objective.system.model, batch["tokens"]

    @jax.jit
    def at(level: Any) -> Any:
        told = objective.system.told(params, tokens)
        x, clean = jax.random.normal(jax.random.key(0), batch["latents"].shape), batch["latents"]
        t = jnp.broadcast_to(level, clean.shape[:2])
        call = Call.at(objective.system.process.model_time(t))
        noisy = (1 - level) * clean + level * x
        _, said = model.apply({"params": params["model"]}, noisy, call, told, mutable=["gates"])
        return objective.share(said["gates"]["layers"]["spent"][0], clean).mean()

    return np.asarray([at(level) for level in (np.arange(8) + 0.5) / 8])


def losses(steps: int = 400, names: Sequence[str] = ()) -> None:
    """Prints a row for each network."""
    seen, test = clips("train", CLIPS), clips("test", HELD_OUT)
    optimizer, base = dydit.config().optimizer, None
    for name, objective in variants().items():
        if names and name not in names and name != "nano":
            continue
        began = time.perf_counter()
        changed = {"changed": lambda params: pruned(params, 2, 5)} if name == "pruned" else {}
        params = train(objective, optimizer, seen, steps, nano.VAE_WEIGHTS, **changed)
        judged = FlowMatching(objective.system, rows=objective.rows)
        found = held_out(judged, params, test)
        base = found if base is None else base
        spent = np.ones(8) if name == "nano" else share(objective, params, test)
        taken = time.perf_counter() - began
        print(
            f"{name:<24} share {spent.mean():.3f} ({spent.round(2).tolist()})"
            f" {compared(found, base)}  {taken:.0f} s",
            flush=True,
        )


def programs(weights: str = "nano", height: int = 128, width: int = 128) -> None:
    """Prints operations and time of a call of two videos at every width, beside the plain one."""
    pipe = jvdm.load(weights, progress=False)
    plain: Any = pipe.system.model
    plain = plain.clone(remat="none", unroll=plain.depth, dynamic=None)
    vae, count = pipe.system.vae, pipe.manifest.defaults.num_frames
    sizes = (vae.latent_frames(count), *vae.latent_size(height, width), vae.latent_channels)
    x = jax.random.normal(jax.random.key(0), (2, *sizes))
    text = Conditions(TextStates(jnp.zeros((2, 8, pipe.system.text.width)), jnp.full((2,), 8)))
    call = Call.at(jnp.full(x.shape[:2], 0.5))
    heads = plain.width // plain.head_dim
    rule = dataclasses.replace(dydit.RULE, groups=dydit.RULE.groups)
    params = plain.clone(dynamic=rule).init(jax.random.key(0), x, call, text)["params"]
    widths = [(-(-heads * part // 4), rule.groups * part // 4) for part in (4, 3, 2, 1)]
    rules = [("plain", None), *((f"{a} heads, {b} groups", rule) for a, b in widths)]
    rows = [None, *(dataclasses.replace(rule, width=width) for width in widths)]
    rows += [dataclasses.replace(rule, width=widths[1], capacity=share) for share in (0.75, 0.5)]
    names = [name for name, _ in rules] + [f"{rules[2][0]}, {c:g} of tokens" for c in (0.75, 0.5)]
    compiled, costs, times = [], [], np.zeros((len(rows), 15))
    for row in rows:
        run = jax.jit(plain.clone(dynamic=row).apply)
        compiled.append(run.lower({"params": params}, x, call, text).compile())
        cost: Any = compiled[-1].cost_analysis()
        costs.append(cost["flops"])
    for turn in range(times.shape[1]):  # all by turns, as others use the cores too
        for number, program in enumerate(compiled):
            began = time.perf_counter()
            jax.block_until_ready(program({"params": params}, x, call, text))
            times[number, turn] = time.perf_counter() - began
    print(f"tokens {np.prod(sizes[:3]) // plain.patch**2} of {len(x)} videos")
    for name, cost, taken in zip(names, costs, times.min(1), strict=True):
        print(
            f"{name:<36} {cost / 1e9:8.2f} GFLOP {cost / costs[0]:5.2f}"
            f" {taken * 1e3:8.1f} ms {taken / times[0].min():5.2f}"
        )


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    if command == "losses":
        losses(int(given[0]) if given else 400, given[1:])
    else:
        programs(given[0] if given else "nano", *map(int, given[1:3]))
