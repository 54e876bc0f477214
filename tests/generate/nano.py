"""A weights folder of a random model, small enough that every test compiles it in a second."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.interpreters.partial_eval import dce_jaxpr

from jvdm.models import VideoDiT
from jvdm.samplers import ClassifierFree, ShiftedLevels
from jvdm.system import Sampling, System, rules_of
from jvdm.text.words import WordEncoder
from jvdm.vae.video_vae import VideoVAE
from jvdm.values import to_data
from jvdm.weights import Defaults, Manifest, safetensors, write_manifest

ONE_EACH = (1, 1, 1, 1)
VAE = VideoVAE(4, widths=(8, 16), encoder_blocks=ONE_EACH, decoder_blocks=ONE_EACH)
DIT = VideoDiT(
    width=32, depth=2, latent_channels=4, head_dim=16, rotary_axes=(4, 6, 6), dtype="float32"
)
TEXT = WordEncoder(width=16, depth=1, head_dim=16, dtype="float32")
SYSTEM = System(
    TEXT, DIT, VAE, sampling=Sampling(ShiftedLevels(3, 2.0), guidance=ClassifierFree(2.0))
)
MANIFEST = Manifest(
    family="nano",
    components={"vae": to_data(VAE), "model": to_data(DIT), "text": to_data(TEXT)},
    latent_mean=(0.1, -0.2, 0.3, 0.0),
    latent_std=(0.5, 1.0, 0.7, 0.9),
    defaults=Defaults(16, 32, 9, 12.0),
    trained_frames=9,
    trained_sizes=((16, 32),),
    rules=rules_of(SYSTEM),
)


# For programs of a hundred shapes: LLVM would take five times as long to make them fast.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


# What draws are scaled and zeros are made by, which need no program.
_IN_NUMPY: dict[str, Callable[..., Any]] = {
    "mul": np.multiply,
    "sqrt": np.sqrt,
    "broadcast_in_dim": np.asarray,
}


def drawn(init: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what `init` makes, draw by draw: a program of all draws takes a second to compile.

    Equal shapes are compiled once, whatever network has them; the last bit may be another.
    """
    program, shapes = jax.make_jaxpr(init, return_shape=True)(*arguments)
    needed, used = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    given = list(itertools.compress(jax.tree.leaves(arguments), used))
    made = map(jnp.asarray, _run(needed, program.consts, given))
    return jax.tree.unflatten(jax.tree.structure(shapes), made)


def _run(jaxpr: Any, constants: list[Any], arguments: list[Any]) -> list[Any]:
    """Returns the results of a program whose parts run one by one, those of loops too."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(of: Any) -> Any:
        return of.val if isinstance(of, Literal) else values[of]

    for part in jaxpr.eqns:
        name, given, inputs = part.primitive.name, part.params, [*map(read, part.invars)]
        like = part.outvars[0].aval
        if name == "scan" and "num_consts" in given and not given["reverse"]:  # of jax 0.10
            made = _scanned(given, inputs)
        elif name in _IN_NUMPY and {np.ndim(x) for x in inputs} <= {0, like.ndim}:
            made = [np.asarray(np.broadcast_to(_IN_NUMPY[name](*inputs), like.shape), like.dtype)]
        else:
            made = part.primitive.bind(*inputs, **part.primitive.get_bind_params(given))
            made = made if part.primitive.multiple_results else [made]
        values |= zip(part.outvars, made, strict=True)
    return [*map(read, jaxpr.outvars)]


def _scanned(given: dict[str, Any], inputs: list[Any]) -> list[Any]:
    """Returns what a loop hands on, and its results of all turns."""
    fixed, body, turns = given["num_consts"], given["jaxpr"], []
    constants, carry = inputs[:fixed], inputs[fixed : fixed + given["num_carry"]]
    for turn in range(given["length"]):
        over = [x[turn] for x in inputs[fixed + len(carry) :]]
        made = _run(body.jaxpr, body.consts, [*constants, *carry, *over])
        carry, results = made[: len(carry)], made[len(carry) :]
        turns.append(results)
    return [*carry, *map(np.stack, zip(*turns, strict=True))]


def write_weights(folder: Path) -> Path:
    """Writes random weights whose text, levels and latents all have an effect."""
    for name, params in drawn(SYSTEM.init_denoiser, jax.random.key(0)).items():
        safetensors.save(folder / f"{name}.safetensors", params, dtype="float32")
    write_vae(folder)
    write_manifest(folder, MANIFEST)
    return folder


def write_vae(folder: Path, seed: int = 0) -> None:
    """Writes a random autoencoder; another seed is another one."""
    vae = drawn(VAE.init, jax.random.key(seed), jnp.zeros((1, 1, 8, 8, 3)))
    safetensors.save(folder / "vae.safetensors", vae["params"], dtype="float32")
