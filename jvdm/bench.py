"""`jvdm bench model`: a whole network with sparse attention beside dense attention, and its price.

Random weights, but attention with structure, so that policies which look at it have something to
find. Needs jax and flax only:

    python -c "from jvdm import bench; bench.main('model', shape='wan-1.3b-720p')"
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Latents, PyTree
from jvdm.attention import POLICIES, Sparse, summary
from jvdm.errors import ConfigError
from jvdm.fidelity import psnr, ssim
from jvdm.files import probe_writable, write_text
from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.recipes import nearest
from jvdm.samplers import Call
from pallas_kernels.attention.bench import seconds
from pallas_kernels.attention.shapes import SHAPES, Shape

TEXT = (512, 4096)  # states of a prompt and their width: T5-XXL in Wan
CHANNELS, PATCH = 16, 2  # of latents, and cells of a token's side: Wan, HunyuanVideo
MLP_RATIO = 6  # Wan 1.3B has 5.83
ROTARY_BASE = 1e4
REGIONS = 24  # that move through the video (specs/efficiency.md, 0.7)
SHARPNESS = 3.0  # gain of the norms of queries and keys: scores have a deviation of its square
LEVEL = 0.5  # noise level of the call


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Times attention, or a network with it, on this device."""

    what: Literal["model"] = "model"
    """model: forward passes of a network with random weights."""
    shape: str | None = None
    """Shape by name, such as wan-1.3b-720p; tiny on a CPU, else wan-1.3b-480p, if left out."""
    policies: tuple[str, ...] = ("draft", "random")
    """Sparse policies, by name."""
    densities: tuple[float, ...] = (0.25,)
    """Shares of attention that are computed in the layers that are not dense."""
    dense_layers: int = 1
    """First layers that are dense, for every policy."""
    seed: int = 0
    """Seed of weights and video."""
    output: Path = Path("out/bench")
    """Folder for the results as JSON."""


def run(options: BenchOptions) -> dict[str, Any]:
    """Runs the network with dense attention, then with every policy at every density.

    Returns:
        `rows`: policy, density asked for, seconds of a forward pass (median) and how many times
        faster it is than the dense one, its price (`price`), and what the tallies say
        (`jvdm.attention.summary`).

    Raises:
        ConfigError: If there is no such shape or policy, or a policy cannot run on the shape.
    """
    name = options.shape or ("tiny" if jax.default_backend() == "cpu" else "wan-1.3b-480p")
    if name not in SHAPES:
        raise ConfigError(f"there is no shape {name!r}", nearest(name, SHAPES), "take one of these")
    shape, path = SHAPES[name], options.output / "model.json"
    probe_writable(options.output)
    variants = {("dense", 1.0): POLICIES["dense"], **_variants(options)}
    for policy in variants.values():
        network(shape, policy).start(shape.grid[0], *_cells(shape))
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "settings": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "shape": {"name": name, **shape._asdict(), "tokens": shape.length},
        "device": device.device_kind,
        "jax": jax.__version__,
        "rows": [],
    }
    keys = jax.random.split(jax.random.key(options.seed), 3)
    params, text = parameters(keys[0], shape), jax.random.normal(keys[1], (1, *TEXT))
    inputs = params, moving_regions(keys[2], shape), text
    dense, dense_s = None, 0.0
    for (policy_name, density), policy in variants.items():
        forward = program(network(shape, policy))
        made, states = forward(*inputs)
        time = seconds(forward, *inputs)
        dense, dense_s = (made, time) if dense is None else (dense, dense_s)
        row = {"policy": policy_name, "asked": density, "seconds": time, "speedup": dense_s / time}
        near = {key: round(float(value), 4) for key, value in price(made, dense).items()}
        result["rows"].append({**row, **near, **summary(states)})
        write_text(path, json.dumps(result, indent=1) + "\n")  # a long run may be stopped
    return {**result, "outputs": [str(path)]}


def text(result: Mapping[str, Any]) -> str:
    """Returns the table, and where the file is."""
    shape = result["shape"]
    lines = [
        f"{result['device']}, jax {result['jax']}; {shape['name']}: {shape['tokens']} tokens, "
        f"{shape['layers']} layers, {shape['heads']} heads of {shape['size']}",
        "policy   asked  density  recall  seconds  speedup   error    PSNR    SSIM",
    ]
    for row in result["rows"]:
        kept = "     -" if row.get("recall") is None else f"{row['recall']:6.3f}"
        lines.append(
            f"{row['policy']:8} {row['asked']:5.2f}  {row.get('density', 1.0):7.3f}  {kept}  "
            f"{row['seconds']:7.3f}  {row['speedup']:7.2f}  {row['error']:6.4f}  "
            f"{row['psnr']:6.2f}  {row['ssim']:6.4f}"
        )
    return "\n".join([*lines, "", *result["outputs"]])


def main(what: Literal["model"] = "model", **options: Any) -> None:
    """Runs and prints, where there is no command line."""
    print(text(run(BenchOptions(what, **options))))


def network(shape: Shape, policy: Any) -> VideoDiT:
    """Returns a network of a shape; a third of a head turns with each axis."""
    third = shape.size // 6 * 2
    return VideoDiT(
        width=shape.heads * shape.size,
        depth=shape.layers,
        latent_channels=CHANNELS,
        head_dim=shape.size,
        mlp_ratio=MLP_RATIO,
        patch=PATCH,
        rotary_axes=(shape.size - 2 * third, third, third),
        rotary_base=ROTARY_BASE,
        policy=policy,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )


def parameters(key: Array, shape: Shape) -> PyTree:
    """Returns random parameters with sharp attention.

    Plainly random queries and keys attend to everything alike, which no trained network does:
    their norms have a gain of `SHARPNESS` instead of 1.
    """
    model = network(shape, POLICIES["dense"])
    latents = jnp.zeros((1, 1, PATCH, PATCH, CHANNELS))  # parameters do not depend on sizes
    call, told = Call.at(jnp.zeros((1, 1))), _told(jnp.zeros((1, *TEXT)))
    params = jax.jit(model.init)(key, latents, call, told)["params"]

    def sharper(path: Any, leaf: Array) -> Array:
        sharp = {"q_norm", "k_norm"} & {getattr(part, "key", None) for part in path}
        return leaf * SHARPNESS if sharp and "self_attention" in str(path) else leaf

    return jax.tree_util.tree_map_with_path(sharper, params)


def moving_regions(key: Array, shape: Shape) -> Latents:
    """Returns noisy latents of soft regions that drift over the frames.

    A cell is the mixture of the features of the regions near it; queries and keys are linear
    maps of it, so that regions attend to regions, wherever they have moved.
    """
    draws = jax.random.split(key, 4)
    sides = (shape.grid[0], *_cells(shape))
    axes = (jnp.arange(side, dtype=jnp.float32) for side in sides)
    frame, *place = jnp.meshgrid(*axes, indexing="ij")
    size = jnp.array(sides[1:], jnp.float32)[:, None]
    start = jax.random.uniform(draws[0], (2, REGIONS)) * size
    speed = jax.random.normal(draws[1], (2, REGIONS)) * size / sides[0] / 4
    far = jnp.zeros((*sides, REGIONS))
    for axis in range(2):
        centre = start[axis][None] + speed[axis][None] * jnp.arange(sides[0])[:, None]
        far += (place[axis][..., None] - centre[:, None, None]) ** 2
    near = jax.nn.softmax(-far / (2 * PATCH**2), -1)
    features = jax.random.normal(draws[2], (REGIONS, CHANNELS))
    noise = jax.random.normal(draws[3], (*sides, CHANNELS))
    return ((1 - LEVEL) * near @ features + LEVEL * 0.3 * noise)[None]


def program(model: VideoDiT) -> Any:
    """Returns the forward pass: the prediction, and the states of the policy."""

    def forward(params: PyTree, x: Latents, states: Float[Array, "B L D"]) -> Any:
        call = Call.at(jnp.full(x.shape[:2], LEVEL))
        both: Any = model.apply({"params": params}, x, call, _told(states))
        return both[0], both[1].layers

    return jax.jit(forward)


@jax.jit
def price(made: Latents, dense: Latents) -> dict[str, Array]:
    """Returns how far a prediction is from that of dense attention.

    `error` is the norm of the difference, relative to the norm of the prediction. PSNR and SSIM
    are those of three channels as pictures, in which three deviations to both sides are 0..1.
    """
    centre, spread = dense.mean(), 6 * dense.std()
    one, two = ((x[..., :3] - centre) / spread + 0.5 for x in (made, dense))
    error = jnp.linalg.norm(made - dense) / jnp.linalg.norm(dense)
    return {"error": error, "psnr": psnr(one, two).mean(), "ssim": ssim(one, two).mean()}


def _told(states: Float[Array, "B L D"]) -> Conditions:
    return Conditions(TextStates(states, jnp.full(states.shape[:1], states.shape[1])))


def _cells(shape: Shape) -> tuple[int, int]:
    return shape.grid[1] * PATCH, shape.grid[2] * PATCH


def _variants(options: BenchOptions) -> dict[tuple[str, float], Any]:
    """Returns every policy at every density."""
    sparse: dict[str, Any] = {
        name: policy for name, policy in POLICIES.items() if isinstance(policy, Sparse)
    }
    found = {}
    for density in options.densities:
        for name in options.policies:
            if name not in sparse:
                what = f"a sparse policy called {name!r} was asked for"
                raise ConfigError(what, "there is none", nearest(name, sparse))
            fields: Any = {"density": density, "dense_layers": options.dense_layers}
            found[name, density] = dataclasses.replace(sparse[name], **fields)
    return found
