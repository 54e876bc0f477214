"""Networks of published families at their own sizes, ours and Diffusers', for `jvdm bench`.

Weights are random, which changes no time. The fields of `config.json` say the sizes of both.
"""

import concurrent.futures
import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Latents, PyTree
from jvdm.compiling import Program
from jvdm.models.stand_in import told as told_of
from jvdm.pipeline.loading import chosen_dtype, ready
from jvdm.recipes import load_family
from jvdm.samplers import (
    Call,
    Euler,
    linspace_levels,
    make_denoiser,
    rectified_flow,
    sample,
    synchronous,
    thousandths,
)
from jvdm.vae import ltx_published, wan_published
from jvdm.vae.tiling import pieces
from pallas_kernels.attention.bench import seconds

LEVEL = 0.5  # noise level of a call
STEPS = 20  # of a video that is made


class Family(NamedTuple):
    """A model at the sizes of one video.

    Attributes:
        pipeline: Class of Diffusers' pipeline, by which the family of ours is found.
        classes: Diffusers' classes of the transformer and of the autoencoder.
        transformer: Fields of the first.
        vae: Fields of the second.
        latents: Frames, rows, columns and channels.
        prompt: States of a prompt, and their width.
    """

    pipeline: str
    classes: tuple[str, str]
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    latents: tuple[int, int, int, int]
    prompt: tuple[int, int]

    def of(self, **fields: Any) -> "Family":
        """Returns the family with other fields of the transformer."""
        return self._replace(transformer={**self.transformer, **fields})


_WAN = {"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "freq_dim": 256}
_LTX_WIDTHS = [128, 256, 512, 512]
_LTX_VAE = {
    **{"latent_channels": 128, "patch_size": 4, "block_out_channels": _LTX_WIDTHS},
    **{"decoder_block_out_channels": _LTX_WIDTHS, "layers_per_block": [4, 3, 3, 3, 4]},
    **{"down_block_types": ["LTXVideoDownBlock3D"] * 4, "decoder_causal": False},
    "spatio_temporal_scaling": [True, True, True, False],
}

_WAN_VAE = {
    **{"z_dim": 16, "base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    "temperal_downsample": [False, True, True],
}
_WAN_1B = Family(
    "WanPipeline",
    ("WanTransformer3DModel", "AutoencoderKLWan"),
    {
        **_WAN,
        **{"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30},
        **{"ffn_dim": 8960, "cross_attn_norm": True, "text_dim": 4096},
    },
    _WAN_VAE,
    (21, 60, 104, 16),
    (512, 4096),
)
_WAN_14B = _WAN_1B.of(num_attention_heads=40, num_layers=40, ffn_dim=13824)
_WAN_5B = _WAN_1B.of(num_attention_heads=24, ffn_dim=14336, in_channels=48, out_channels=48)
_LTX_2B = Family(
    "LTXPipeline",
    ("LTXVideoTransformer3DModel", "AutoencoderKLLTXVideo"),
    {
        **{"in_channels": 128, "out_channels": 128, "num_layers": 28},
        **{"num_attention_heads": 32, "attention_head_dim": 64},
    },
    _LTX_VAE,
    (16, 16, 24, 128),
    (128, 4096),
)

FAMILIES = {
    "wan-1.3b-480p": _WAN_1B,
    "wan-14b-480p": _WAN_14B,
    "wan-14b-720p": _WAN_14B._replace(latents=(21, 90, 160, 16)),
    "wan-5b-720p": _WAN_5B._replace(
        vae={
            **{**_WAN_VAE, "z_dim": 48, "base_dim": 160, "decoder_base_dim": 256},
            **{"is_residual": True, "patch_size": 2},
        },
        latents=(31, 44, 80, 48),
    ),
    "ltx-2b-512p": _LTX_2B,
    "ltx-13b-512p": _LTX_2B.of(attention_head_dim=128, num_layers=48),
    "wan-tiny": Family(
        "WanPipeline",
        ("WanTransformer3DModel", "AutoencoderKLWan"),
        {
            **_WAN,
            **{"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2},
            **{"ffn_dim": 32, "cross_attn_norm": True, "text_dim": 8},
        },
        {
            **{"z_dim": 16, "base_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1},
            "temperal_downsample": [True],
        },
        (3, 4, 4, 16),
        (5, 8),
    ),
}
"""Videos of 81 frames at 480 x 832 and 720 x 1280, of 121 at 704 x 1280 (5B) and at 512 x 768
(LTX-Video), and one for tests and CPUs. A network of Wan 2.2 A14B is one of 14B."""

COMPARED = ("wan-1.3b-480p", "ltx-2b-512p")
"""What is timed if no name is given."""


class Run(NamedTuple):
    """What is timed: `call(*inputs)`, and the memory that it takes on the device, if known."""

    call: Callable[..., Any]
    inputs: tuple[Any, ...]
    gib: float | None


def rows(names: tuple[str, ...], peers: bool = True) -> Iterator[dict[str, Any]]:
    """Times families part by part: a call of the transformer, decoding, and a video of both.

    Args:
        names: Of `FAMILIES`.
        peers: Whether Diffusers is timed in the same run, its transformers compiled; they must be
            installed (`missing`).

    Yields:
        `shape`, `part`, `seconds` and `gib` of ours; `peer_seconds`, `peer_gib` and `ratio`, how
        many times faster ours is, where there is a peer.
    """
    for name in names:
        family = FAMILIES[name]
        network, coder = _network(family), decoder(family)
        runs = transformer(family, *network), coder, video(family, *network, coder)
        for (part, peer), run in zip(PARTS.items(), runs, strict=True):
            time = seconds(run.call, *run.inputs)
            row: dict[str, Any] = {"shape": name, "part": part, "seconds": time, "gib": run.gib}
            if peers and peer:
                theirs, gib = peer(family)
                row |= {"peer_seconds": theirs, "peer_gib": gib, "ratio": theirs / time}
            yield row


def told(row: Mapping[str, Any] | None = None) -> str:
    """Returns a line of the table, its head if there is no row."""
    if row is None:
        return "shape          part            ms     GiB  Diffusers ms     GiB   ratio"
    line = f"{row['shape']:14} {row['part']:11} {1e3 * row['seconds']:7.1f} {_gib_told(row['gib'])}"
    if "ratio" not in row:
        return line
    peer = f"{1e3 * row['peer_seconds']:13.1f} {_gib_told(row['peer_gib'])}"
    return f"{line} {peer} {row['ratio']:7.2f}"


def _gib_told(gib: float | None) -> str:
    return "      -" if gib is None else f"{gib:7.2f}"


def missing() -> str:
    """Returns why Diffusers is not timed here; empty if it is."""
    for module in ("torch", "diffusers"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    cuda = importlib.import_module("torch").cuda.is_available()
    if cuda != (jax.default_backend() == "gpu"):
        return "this torch has no CUDA" if not cuda else "jax does not use the GPU"
    return ""


# Ours


def transformer(family: Family, forward: Callable[..., Latents], params: PyTree) -> Run:
    """Returns one call of the network, of one video."""
    given = (params, *inputs(family))
    compiled = Program(forward).lower(*given).compile()
    return Run(compiled, given, gib(compiled))


def decoder(family: Family) -> Run:
    """Returns the decoder on one video, in chunks as the pipeline decodes it."""
    network, params = _autoencoder(family)
    latents = inputs(family)[0]

    def decode_chunk(params: PyTree, latents: Latents, carry: PyTree) -> tuple[Array, PyTree]:
        return network.apply({"params": params}, latents, carry, method="decode_chunk")

    if not hasattr(network, "decode_chunk"):

        @Program
        def whole(params: PyTree, latents: Latents) -> Array:
            return network.apply({"params": params}, latents, method="decode")

        compiled = whole.lower(params, latents).compile()
        return Run(compiled, (params, latents), gib(compiled))
    chunk, lower = pieces(network, latents.shape)[1], Program(decode_chunk, donate_argnums=2).lower
    size = min(chunk, latents.shape[1] - 1)
    first = lower(params, latents[:, :1], None)
    lowered = first, lower(params, latents[:, 1 : 1 + size], first.out_info[1])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first, later = pool.map(lambda program: program.compile(), lowered)

    def decode(params: PyTree, latents: Latents) -> list[Array]:
        piece, carry = first(params, latents[:, :1], None)
        pieces = [piece]
        for start in range(1, latents.shape[1], size):
            piece, carry = later(params, latents[:, start : start + size], carry)
            pieces.append(piece)
        return pieces

    return Run(decode, (params, latents), gib(later))


def video(family: Family, forward: Callable[..., Latents], params: PyTree, decode: Run) -> Run:
    """Returns `STEPS` steps without guidance, and decoding."""
    latents, states = inputs(family)
    process = rectified_flow(thousandths)
    matrix = synchronous(linspace_levels(STEPS), latents.shape[1])

    @Program
    def denoised(params: PyTree, x: Latents, states: Array) -> Latents:
        def predict(x: Latents, call: Call, carry: PyTree) -> tuple[Latents, PyTree]:
            return forward(params, x, states, call), carry

        denoise = make_denoiser(predict, process)
        return sample(denoise, Euler(), process, matrix, x, jax.random.key(0)).x

    def made(params: PyTree, x: Latents, states: Array, coder: PyTree) -> Any:
        return decode.call(coder, denoised(params, x, states))

    return Run(made, (params, latents, states, decode.inputs[0]), None)


def network_of(family: Family, dtype: str | None = None) -> Any:
    """Returns the transformer, in a number type; None is that of the device."""
    made = load_family(family.pipeline).transformer(family.transformer)
    return made.clone(dtype=chosen_dtype(dtype))


def autoencoder_of(family: Family, dtype: str | None = None) -> Any:
    """Returns the autoencoder, in a number type; None is that of the device."""
    return _AUTOENCODERS[family.classes[1]](family.vae).clone(dtype=chosen_dtype(dtype))


def predicted(network: Any, params: PyTree, x: Latents, states: Array, call: Any = None) -> Latents:
    """Returns what a transformer says of latents, of a middle level if no call is given."""
    call = call or Call.at(jnp.full(x.shape[:2], 1000 * LEVEL))
    return network.apply({"params": params}, x, call, told_of(states))[0]


def shapes_of(network: Any, family: Family) -> PyTree:
    """Returns the shapes of the parameters of a transformer."""
    x, states = jax.eval_shape(lambda: inputs(family))
    call = Call.at(jnp.zeros(x.shape[:2]))

    def init(x: Latents, states: Array) -> PyTree:
        return network.init(jax.random.key(0), x, call, told_of(states))["params"]

    return jax.eval_shape(init, x, states)


def _network(family: Family) -> tuple[Callable[..., Latents], PyTree]:
    """Returns the transformer as a function of parameters, latents, states and call."""
    network = network_of(family)
    params = random_parameters(shapes_of(network, family), network)
    return functools.partial(predicted, network), params


def _autoencoder(family: Family) -> tuple[Any, PyTree]:
    """Returns the autoencoder and its parameters."""
    network = autoencoder_of(family)
    _, height, width = network.strides
    frame = jnp.zeros((1, 1, 2 * height, 2 * width, 3))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), frame)["params"])
    return network, random_parameters(shapes, network)


_AUTOENCODERS = {
    "AutoencoderKLWan": wan_published.vae,
    "AutoencoderKLLTXVideo": functools.partial(ltx_published.vae, level=0.05, noise=0.025),
}


def random_parameters(shapes: PyTree, network: Any) -> PyTree:
    """Returns normal parameters in the number types in which they are used.

    Kernels are so small that what comes of them stays finite; gains are near 1.
    """

    def drawn(key: Array, index: int, path: tuple, leaf: Any) -> Array:
        name, key = str(path[-1].key), jax.random.fold_in(key, index)
        noise = jax.random.normal(key, leaf.shape)
        if name.startswith("kernel"):
            return noise * math.prod(leaf.shape[-4:-1]) ** -0.5
        return (0.0 if name == "bias" else 1.0) + 0.02 * noise

    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)

    @jax.jit  # of a key that is given: XLA would compute numbers of its own as it compiles
    def draw(key: Array) -> PyTree:
        return jax.tree.unflatten(tree, [drawn(key, i, *leaf) for i, leaf in enumerate(flat)])

    return ready(draw(jax.random.key(0)), network)


def inputs(family: Family, videos: int = 1) -> tuple[Latents, Array]:
    """Returns random latents and states of prompts."""
    latents = jax.random.normal(jax.random.key(1), (videos, *family.latents))
    return latents, jax.random.normal(jax.random.key(2), (videos, *family.prompt))


def gib(compiled: Any) -> float | None:
    """Returns the memory of a program with its arguments and results; donated ones count once."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    parts = {"argument": 1, "output": 1, "temp": 1, "alias": -1}
    return sum(n * getattr(sizes, f"{part}_size_in_bytes") for part, n in parts.items()) / 2**30


# Diffusers


def _peer_transformer(family: Family) -> tuple[float, float | None]:
    torch, made = _made(family.classes[0], family.transformer)
    frames, height, width, channels = family.latents
    states, level = _random(1, *family.prompt), torch.tensor([1000 * LEVEL], device=_device())
    compiled = torch.compile(made)
    if "LTX" in family.classes[0]:
        x, mask = _random(1, frames * height * width, channels), _random(1, family.prompt[0])
        scale = (8 / 25, 32, 32)
        inputs = (x, states, level, torch.ones_like(mask), frames, height, width, scale)
    else:
        inputs = (_random(1, channels, frames, height, width), level, states)
    return _timed(functools.partial(compiled, *inputs, return_dict=False))


def _peer_decoder(family: Family) -> tuple[float, float | None]:
    _, made = _made(family.classes[1], family.vae)
    frames, height, width, channels = family.latents
    latents = _random(1, channels, frames, height, width)
    return _timed(functools.partial(made.decode, latents, return_dict=False))


def _made(name: str, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    torch, diffusers = (importlib.import_module(name) for name in ("torch", "diffusers.models"))
    with torch.device(_device()):
        return torch, getattr(diffusers, name)(**fields).eval().to(_torch_dtype())


def _random(*shape: int) -> Any:
    torch = importlib.import_module("torch")
    return torch.randn(*shape, device=_device(), dtype=_torch_dtype())


def _torch_dtype() -> Any:
    return getattr(importlib.import_module("torch"), chosen_dtype(None))


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _timed(call: Callable[[], Any]) -> tuple[float, float | None]:
    """Returns the median time, and the most memory that PyTorch held."""
    torch = importlib.import_module("torch")
    cuda = torch.cuda if _device() == "cuda" else None
    with torch.no_grad():
        call()
        if cuda:
            cuda.reset_peak_memory_stats()
        time = seconds(call, wait=lambda _: cuda and cuda.synchronize())
    return time, cuda.max_memory_allocated() / 2**30 if cuda else None


PARTS: dict[str, Callable[[Family], Any] | None] = {
    "transformer": _peer_transformer,
    "decode": _peer_decoder,
    "video": None,
}
"""What is timed, with what times the same of Diffusers."""
