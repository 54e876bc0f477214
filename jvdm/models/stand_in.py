"""A network of the shape of a published one, with random weights and something to attend to.

Attention between plainly random queries and keys is flat, and no policy can be told from another
on it. These queries and keys are sharp, and the video has regions that attend to themselves
(specs/efficiency.md, 0.7).
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Latents, PyTree
from jvdm.attention import POLICIES, Policy
from jvdm.attention.policy import Among, AttentionCall, TokenGrid
from jvdm.compiling import Program, kernel_draws
from jvdm.models.carry import Carry
from jvdm.models.conditions import Conditions, TextStates
from jvdm.models.step_cache import StepCache
from jvdm.models.video_dit import VideoDiT
from jvdm.samplers import Call
from pallas_kernels.attention.shapes import Shape

TEXT = (512, 4096)  # states of a prompt and their width: T5-XXL in Wan
CHANNELS, PATCH = 16, 2  # of latents, and cells of a token's side: Wan, HunyuanVideo
MLP_RATIO = 6  # Wan 1.3B has 5.83
ROTARY_BASE = 1e4
REGIONS = 24  # that move through the video (specs/efficiency.md, 0.7)
SHARPNESS = 3.0  # gain of the norms of queries and keys: scores have a deviation of its square
LEVEL, BEFORE = 0.5, 0.7  # noise level of the call, and of calls before it


def network(shape: Shape, policy: Any, cache: StepCache | None = None) -> VideoDiT:
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
        cache=cache,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )


def parameters(key: Array, shape: Shape) -> PyTree:
    """Returns random parameters with sharp attention.

    Plainly random queries and keys attend to everything alike, which no trained network does:
    their norms have a gain of `SHARPNESS` instead of 1.
    """
    model = network(shape, POLICIES["dense"])
    latents = jnp.zeros((1, 1, PATCH, PATCH, CHANNELS))  # parameters do not depend on sizes
    call = Call.at(jnp.zeros((1, 1)))
    with kernel_draws():
        params = jax.jit(model.init)(key, latents, call, told(jnp.zeros((1, *TEXT))))["params"]

    def sharper(path: Any, leaf: Array) -> Array:
        sharp = {"q_norm", "k_norm"} & {getattr(part, "key", None) for part in path}
        return leaf * SHARPNESS if sharp and "self_attention" in str(path) else leaf

    return jax.tree_util.tree_map_with_path(sharper, params)


@functools.partial(jax.jit, static_argnames="shape")
def moving_regions(key: Array, shape: Shape, level: float | Array = LEVEL) -> Latents:
    """Returns noisy latents of soft regions that drift over the frames.

    A cell is the mixture of the features of the regions near it; queries and keys are linear
    maps of it, so that regions attend to regions, wherever they have moved.
    """
    draws = jax.random.split(key, 4)
    sides = (shape.grid[0], *cells(shape))
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
    return ((1 - level) * near @ features + level * 0.3 * noise)[None]


@functools.cache
def program(model: VideoDiT) -> Any:
    """Returns the forward pass of one row: the prediction, and the carry of the next.

    The same one for equal networks, so that several variants compile their dense rows once.
    """

    def forward(
        params: PyTree, x: Latents, states: Float[Array, "B L D"], carry: Carry, call: Call
    ) -> tuple[Latents, Carry]:
        made: Any = model.apply({"params": params}, x, call, told(states), carry)
        return made

    return Program(forward)


def compiled(networks: Mapping[str, VideoDiT], *given: Any) -> dict[str, Any]:
    """Returns `program` of each network, compiled side by side for such inputs."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.map(lambda model: program(model).lower(*given).compile(), networks.values())
        return dict(zip(networks, made, strict=True))


@dataclasses.dataclass(frozen=True)
class Unattended(Policy):
    """A sparse policy without its attention: what is left takes time for all else.

    Queries pass through, after all that attention would read was read.
    """

    policy: Policy
    """The policy."""
    chooses: bool = True
    """Whether it chooses blocks."""

    def in_layers(self, depth: int) -> tuple[tuple[Policy, int], ...]:
        """Divides the layers as the policy does."""
        parts = self.policy.in_layers(depth)
        return tuple((dataclasses.replace(self, policy=part), count) for part, count in parts)

    def order(self, grid: TokenGrid) -> Any:
        """Returns the order that the policy wants."""
        return self.policy.order(grid)

    def init(self, grid: TokenGrid) -> PyTree:
        """Returns the state of the policy."""
        return self.policy.init(grid)

    def select(self, *given: Any) -> Any:
        """Returns what the policy chooses."""
        return self.policy.select(*given)

    def attend(self, q, k, v, state: PyTree, call: AttentionCall, among: Among):
        """Returns queries, and the state that the policy would return."""
        if self.chooses:
            return self.policy.attend(q, k, v, state, call, _read)
        return _read(q, call.turn(k), v, None), state


def _read(q: Array, k: Array, v: Array, mask: Any, return_lse: bool = False) -> Any:
    """Returns queries, and zeros, whose last bits could depend on all that is given."""
    leaves = jax.tree.leaves((k, v, mask))
    total = 1e-30 * sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves)
    out = (q + total).astype(q.dtype)
    return (out, jnp.broadcast_to(total, (q.shape[0], *q.shape[2:0:-1]))) if return_lse else out


def row(shape: Shape, index: int = 0, level: float = LEVEL, after: float = 0.0) -> Call:
    """Returns what a network is told of a row of a run: its index, its level and the next one."""
    levels = (jnp.full((1, shape.grid[0]), value, jnp.float32) for value in (level, after))
    call = Call.at(*levels)
    return call._replace(row=call.row._replace(index=jnp.int32(index)))


def told(states: Float[Array, "B L D"]) -> Conditions:
    """Returns the conditions of a prompt whose states are all true."""
    return Conditions(TextStates(states, jnp.full(states.shape[:1], states.shape[1])))


def cells(shape: Shape) -> tuple[int, int]:
    """Returns height and width of latents."""
    return shape.grid[1] * PATCH, shape.grid[2] * PATCH
