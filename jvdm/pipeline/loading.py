"""From a weights folder to networks and parameters on the device."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jvdm import samplers
from jvdm.arrays import PyTree
from jvdm.errors import ConfigError, WeightsError
from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.parallel.mesh import replicate
from jvdm.pipeline.programs import Networks
from jvdm.stages import Stages
from jvdm.text.words import WordEncoder
from jvdm.vae.latent_space import LatentSpace
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights import Manifest, read_manifest, safetensors
from jvdm.weights.folder import frozen, identity

COMPONENTS: Mapping[str, type] = {"text": WordEncoder, "dit": VideoDiT, "vae": VideoVAE}
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model on the device.

    Attributes:
        networks: The modules.
        params: Parameters of the denoiser, `{"dit": ..., "text": ...}`.
        space: Parameters of the autoencoder and statistics of its latents.
        manifest: What the weights folder says.
        folder: The weights folder.
        identity: sha256 of its files.
    """

    networks: Networks
    params: PyTree
    space: LatentSpace
    manifest: Manifest
    folder: Path
    identity: Mapping[str, str]


def load_model(
    folder: Path, dtype: str | None, solver: str | None, mesh: Mesh | None, stages: Stages
) -> Loaded:
    """Reads and checks a weights folder.

    Args:
        folder: The weights folder.
        dtype: "float32" or "bfloat16" computation; None is float32 on a CPU, where
            it is faster (0.30 s against 0.75 s for a step on two cores), else bfloat16.
        solver: Name of the solver; None takes the model's default.
        mesh: Devices that share a batch; None is the first device.
        stages: Where the time is noted.

    Raises:
        WeightsError: If anything is missing, broken, or of another model.
        ConfigError: If `dtype` is another one, or there is no such solver.
    """
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}", f"known are {', '.join(DTYPES)}", "leave it out")
    with stages.stage("load", total=3, unit="part") as bar:
        manifest = read_manifest(folder)
        modules = {name: _module(folder, manifest, name, dtype) for name in COMPONENTS}
        chosen = samplers.solver_named(solver or manifest.defaults.solver)
        networks = Networks(**modules, process=samplers.rectified_flow(), solver=chosen, mesh=mesh)
        shapes = jax.eval_shape(lambda: _initial(networks))
        bar.update()
        denoiser, vae = (
            _parameters(folder / f"{name}.safetensors", expected, bar)
            for name, expected in zip(("dit", "vae"), shapes, strict=True)
        )
        denoiser = {name: _ready(tree, modules[name].dtype) for name, tree in denoiser.items()}
        statistics = (
            jnp.asarray(v, jnp.float32) for v in (manifest.latent_mean, manifest.latent_std)
        )
        space = LatentSpace(_ready(vae, networks.vae.dtype), *statistics)
        if mesh is not None:
            denoiser, space = replicate((denoiser, space), mesh)
        return Loaded(networks, denoiser, space, manifest, folder, identity(folder))


def _module(folder: Path, manifest: Manifest, name: str, dtype: str) -> Any:
    """Builds a component from the fields that the manifest has for it."""
    fix = "give a folder that `jvdm train configs/tiny_t2v.py` or configs/nano.py exported"
    if name not in manifest.components:
        what = f"{folder} holds {', '.join(manifest.components) or 'nothing'}"
        raise WeightsError(what, f"making a video needs {', '.join(COMPONENTS)}", fix)
    fields = {field: frozen(value) for field, value in manifest.components[name].items()}
    try:
        return COMPONENTS[name](**fields | {"dtype": dtype})
    except TypeError as error:
        what = f"{folder}/model.json describes a {name} that this jvdm cannot build"
        raise WeightsError(what, str(error), "update jvdm, or export the weights again") from error


def _initial(networks: Networks) -> tuple[PyTree, PyTree]:
    """Returns freshly initialised parameters; only their shapes are ever used."""
    key, dit = jax.random.key(0), networks.dit
    ids = jnp.zeros((1, networks.text.max_tokens), jnp.int32)
    variables = networks.text.init(key, ids)
    states = TextStates(*networks.text.bind(variables)(ids))
    latents = jnp.zeros((1, 1, dit.patch, dit.patch, dit.latent_channels))
    call = samplers.Call.at(latents[..., 0, 0, 0])
    denoiser = dit.init(key, latents, call, Conditions(states))
    vae = networks.vae.init(key, jnp.zeros((1, 1, *networks.vae.strides[1:], 3)))
    return {"dit": denoiser["params"], "text": variables["params"]}, vae["params"]


def _parameters(path: Path, expected: PyTree, bar: Any) -> PyTree:
    """Reads one file and checks that it holds exactly the parameters of the module."""
    tree = safetensors.load(path)
    safetensors.match(path, tree, expected)
    bar.update()
    return tree


def _ready(tree: PyTree, dtype: Any) -> PyTree:
    """Puts parameters on the device.

    Kernels are cast to the type that they are used in, once instead of in every
    step; all modules cast them anyway. Gains, biases and tables stay float32.
    """

    def place(path: tuple, leaf: Any) -> Any:
        is_kernel = str(path[-1].key).startswith("kernel")
        return jnp.asarray(leaf, dtype if is_kernel else jnp.float32)

    return jax.tree_util.tree_map_with_path(place, tree)
