"""What runs on the device: pure functions, each compiled once per shape.

Prompts, seeds, guidance scale and timestep matrix are arguments, so another value
of the same shape finds its program in the cache.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt32

from jvdm import samplers
from jvdm.arrays import Array, Bool, Float, Int, Latents, PyTree, TokenIds, UInt8
from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.parallel.mesh import constrain_batch
from jvdm.samplers import Process, Solver, TimestepMatrix
from jvdm.samplers.sampler import State
from jvdm.text.words import WordEncoder
from jvdm.vae.latent_space import LatentSpace
from jvdm.vae.video_vae import VideoVAE


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static part of every program: modules and rules, no arrays."""

    text: WordEncoder
    dit: VideoDiT
    vae: VideoVAE
    process: Process
    solver: Solver
    mesh: Mesh | None = None


def encode_text(networks: Networks, params: PyTree, ids: TokenIds) -> TextStates:
    """Turns token ids into the states that the denoiser reads."""
    return TextStates(*networks.text.bind({"params": params["text"]})(ids))


def begin(
    networks: Networks,
    shape: tuple[int, int, int, int, int],
    window: int,
    seeds: UInt32[Array, " B"],
    noise: Latents | None,
    known: tuple[tuple[Float[Array, "#B _ H W C"], Int[Array, " _"]], ...],
) -> State:
    """Returns the state before the first row: noise, and clean latents where known.

    The noise of a video depends on its own seed and on the latent frame alone. The
    network sees `window` frames at a time.
    """
    key = jax.vmap(jax.random.key)(seeds)
    if noise is None:
        first = jnp.zeros(1, jnp.int32)

        def draw(one: Array) -> Array:
            return samplers.initial_noise(one, first, shape[1], shape[2:])[0]

        noise = jax.vmap(draw)(key)
    for values, columns in known:
        noise = noise.at[:, columns].set(values)
    positions, branches = jnp.arange(shape[1], dtype=jnp.float32), 2
    carry = networks.dit.start(window, *shape[2:4], positions, batch=branches * shape[0])
    state = samplers.start(networks.solver, noise, key[0], carry)
    return _spread(state, networks.mesh)


def denoise_row(
    networks: Networks,
    params: PyTree,
    text: TextStates,
    matrix: TimestepMatrix,
    scale: Float[Array, ""],
    state: State,
    row: Int[Array, ""],
) -> State:
    """Takes one row of the matrix to the next; `text` is that of both branches."""

    def predict(x: Array, call: samplers.Call, carry: PyTree) -> tuple[Array, PyTree]:
        dit = networks.dit.bind({"params": params["dit"]})
        return dit(x, call, Conditions(text), carry)

    denoise = samplers.make_denoiser(predict, networks.process)
    rule = samplers.ClassifierFree(scale)
    guided = samplers.guided(rule, lambda names: denoise, networks.process)
    state = samplers.advance(guided, networks.solver, networks.process, matrix, state, row, 1)
    return _spread(state, networks.mesh)


def _spread(state: State, mesh: Mesh | None) -> State:
    """Fixes where the state lies, so that every row is the same program: videos are split."""
    if mesh is None:
        return state
    batch = (state.x, state.solver, state.updates, state.bad_row, state.address.samples)
    x, solver, updates, bad_row, samples = constrain_batch(batch, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    shared = (state.carry, state.key, state.address.frames)
    carry, key, frames = jax.lax.with_sharding_constraint(shared, whole)
    address = state.address._replace(samples=samples, frames=frames)
    return State(x, solver, updates, bad_row, carry, key, address)


def encode_frames(
    networks: Networks, keep: int, space: LatentSpace, frames: UInt8[Array, "B T h w 3"]
) -> Latents:
    """Encodes pixel frames and returns the last `keep` latents, standardised."""
    vae = networks.vae.bind({"params": space.params})
    mean = vae.encode(frames.astype(jnp.float32) / 255.0).mean
    return space.standardize(mean)[:, -keep:]


def decode_latents(
    networks: Networks, space: LatentSpace, latents: Latents
) -> tuple[UInt8[Array, "B T h w 3"], Bool[Array, ""]]:
    """Decodes standardised latents to bytes; the flag says whether all values were finite."""
    vae = networks.vae.bind({"params": space.params})
    frames = vae.decode(space.restore(latents))
    return to_bytes(frames), jnp.all(jnp.isfinite(frames))


def to_bytes(frames: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Rounds RGB of 0..1 to 0..255; values outside are clipped."""
    return jnp.round(jnp.clip(frames, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def compiled(
    function: Callable[..., Any], *static: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Callable[..., Any]]:
    """Returns a finder of compiled programs: `compiled(f, networks)(*arguments)`.

    The finder takes the arguments, or their shapes, and returns the program for them.
    Programs are kept for the life of the process and shared by equal networks.

    Args:
        function: Pure function; its first arguments are `static`.
        static: Hashable values.
        donate: Positions, among the other arguments, that the program may overwrite.
    """

    def find(*arguments: Any) -> Callable[..., Any]:
        leaves, tree = jax.tree.flatten(arguments)
        return _compile(function, static, donate, tree, tuple(map(_shape, leaves)))

    return find


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Describes an argument by what a program depends on."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
    sharding = getattr(leaf, "sharding", None)
    # One device is no choice: naming it would bind arguments that may lie anywhere.
    sharding = sharding if isinstance(sharding, NamedSharding) else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@functools.lru_cache(maxsize=64)
def _compile(
    function: Callable[..., Any],
    static: tuple,
    donate: tuple[int, ...],
    tree: Any,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
) -> Callable[..., Any]:
    """Compiles for shapes; equal arguments give the program that is there."""
    arguments = jax.tree.unflatten(tree, leaves)
    program = jax.jit(functools.partial(function, *static), donate_argnums=donate)
    return program.lower(*arguments).compile()
