"""What `jvdm plan` plans: training steps, calls of published networks, and whole videos.

Each is the program that would run, and the shapes of what it is given, placed on a mesh.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.arrays import PyTree
from jvdm.data.video_folder import VideoFolder
from jvdm.errors import ConfigError
from jvdm.families import (
    FAMILIES,
    autoencoder_of,
    inputs,
    network_of,
    predicted,
    shapes_of,
)
from jvdm.models import Conditions, TextStates
from jvdm.parallel import (
    TRAINING,
    batch_sharding,
    check_rows,
    constrain,
    data_mesh,
    mesh_of,
    parts,
    shardings,
    using,
)
from jvdm.pipeline import programs
from jvdm.pipeline.loading import kind_in
from jvdm.pricing import Size, latents_of, stored_shapes
from jvdm.products import counted
from jvdm.recipes import load_experiment
from jvdm.samplers import (
    ClassifierFree,
    UniPC,
    linspace_levels,
    rectified_flow,
    synchronous,
    thousandths,
)
from jvdm.scaling import Velocity
from jvdm.system import OF_A_ROW, Sampling, System
from jvdm.text.pieces import PieceTokenizer
from jvdm.text.published import text_encoder
from jvdm.training import setup
from jvdm.training.encoded_clips import EncodedClips
from jvdm.training.low_rank import LowRankMatching, base_of
from jvdm.training.objective import GivenBatch, HasFrozen, HasShapes, Objective, Source
from jvdm.training.optimizer import Optimizer
from jvdm.training.step import make_step
from jvdm.vae.tiling import pieces
from jvdm.weights.diffusers import ADAPTED

_T5 = {"vocab_size": 32128, "d_model": 4096, "num_layers": 24, "num_heads": 64, "d_kv": 64}
_T5 |= {"d_ff": 10240, "relative_attention_num_buckets": 32}
_T5 |= {"relative_attention_max_distance": 128}
_UMT5 = {**_T5, "vocab_size": 256384, "model_type": "umt5"}
_TEXTS = {"WanPipeline": _UMT5, "LTXPipeline": _T5}  # text_encoder/config.json
_TINY = {"vocab_size": 64, "num_layers": 2, "num_heads": 2, "d_kv": 4, "d_ff": 16}  # of wan-tiny
ROWS = 50
"""Steps of a video."""


class Work(NamedTuple):
    """A program to compile, and its arguments as shapes.

    Attributes:
        name: What it is.
        run: The function.
        held: Arguments by what they are; those of training are donated.
        gives: Names of the arguments that results take the place of, in their order; None is new.
        flops: Operations of the products on all devices together, of all `times`.
        largest: Bytes of the largest product with weights, on all devices together.
        times: How often it runs.
        kept: Bytes that a pass forward leaves for the one backward, on all devices together.
        trains: Whether gradients are taken of the parameters.
    """

    name: str
    run: Callable[..., Any]
    held: Mapping[str, PyTree]
    gives: tuple[str | None, ...]
    flops: float
    largest: int
    times: int = 1
    kept: int = 0
    trains: bool = False


def step_of_config(config: str, mesh: Mesh) -> Work:
    """Returns the training step of a config, of batches that are there."""
    experiment = load_experiment(config)
    objective, source, size = experiment.objective, experiment.source, experiment.batch_size
    transform = setup.transform_of(objective, experiment.optimizer, experiment.num_steps)
    name = f"a training step of {experiment.name}"
    encodes = isinstance(source, EncodedClips)
    batch = _encoded(source.encoded_for(objective)) if encodes else _drawn(source, size)
    given = (objective, transform, batch, size)
    return _step(name, given, (experiment.seed, experiment.ema_decay), mesh)


def _drawn(source: Source, size: int) -> PyTree:
    """Returns a batch as shapes; a source that says its own is not started."""
    mesh = data_mesh(1)

    def drawn(data: PyTree) -> PyTree:
        return source.draw(data, jnp.int32(0), size)[0]

    if isinstance(source, HasShapes):
        return jax.eval_shape(drawn, source.shapes(mesh))
    return jax.eval_shape(lambda: drawn(source.start(0, None, mesh)))


def _encoded(source: EncodedClips) -> PyTree:
    """Returns a batch of encoded clips; none is read, nor the weights that encode them."""
    system, clips, rows = base_of(source.base, source.dtype).system, source.clips, source.batch_size
    if not isinstance(clips, VideoFolder):
        what = f"the sizes of the clips of a {type(clips).__name__}"
        raise ConfigError(what, "a VideoFolder alone says them", "plan the run with one")
    size = Size(rows, clips.num_frames, clips.height, clips.width)

    def told(params: PyTree) -> TextStates:
        return system.told(params, jnp.asarray(system.text.read(("",))[0])).text

    nothing = jax.eval_shape(told, {"text": stored_shapes(system)["text"]})
    text = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), nothing)
    latents = jax.ShapeDtypeStruct(latents_of(system, size), jnp.float32)
    return {"latents": latents, "text": text, "nothing": nothing}


def step_of_network(name: str, mesh: Mesh) -> Work:
    """Returns a step of AdamW with an average of the parameters, of a video for each part."""
    family, size = FAMILIES[name], parts(mesh)
    objective: Any = Velocity(family, "bfloat16")
    transform = setup.transform_of(objective, Optimizer(kind="adamw"), 1000)
    batch = jax.eval_shape(lambda: inputs(family, size))
    given = (objective, transform, batch, size)
    return _step(f"a training step of {name}", given, (0, 0.999), mesh)


def _step(
    name: str,
    given: tuple[Objective, Any, PyTree, int],
    run: tuple[int, float],
    mesh: Mesh,
) -> Work:
    """Returns a step of objective, optimizer, batch and its size, of a run of seed and average."""
    (objective, transform, batch, size), (seed, decay) = given, run
    mesh_of(mesh, axes=TRAINING)
    if size % parts(mesh):
        what = f"a batch of {size} cannot be split over {parts(mesh)} devices"
        raise ConfigError(what, "", f"use a batch size that is a multiple of {parts(mesh)}")
    state: Any = setup.state_shapes(objective, transform, seed, mesh)
    batch = _placed(batch, batch_sharding(mesh))
    step = make_step(objective, GivenBatch(batch), transform, size, decay)

    def work(parameters: PyTree, optimizer: Any, batch: PyTree, *frozen: PyTree) -> PyTree:
        made: Any = step.run(
            frozen[0] if frozen else {}, optimizer.replace(params=parameters), batch
        )
        return made[0].params, made[0].replace(params=None), made[2]

    held = {"parameters": state.params, "optimizer": state.replace(params=None), "batch": batch}
    if isinstance(objective, HasFrozen):
        held["frozen"] = _placed(_frozen(objective), NamedSharding(mesh, PartitionSpec()))
    with using(mesh):
        kept = step.kept(held.get("frozen", {}), state, batch)
    made = _work(f"{name}, {size} clips", work, held, ("parameters", "optimizer", None))
    return made._replace(kept=kept, trains=True)


def _frozen(objective: HasFrozen) -> PyTree:
    """Returns what does not train; of a published network no array is read."""
    if not isinstance(objective, LowRankMatching):
        return jax.eval_shape(objective.frozen)
    base = objective.loaded
    return {ADAPTED: _parameters(base.system.model, base.shapes, data_mesh(1))}


def call_of(name: str, mesh: Mesh) -> Work:
    """Returns a call of a published network, of one video, in bfloat16."""
    family, everywhere = FAMILIES[name], NamedSharding(mesh, PartitionSpec())
    network = network_of(family, "bfloat16")

    def forward(parameters: PyTree, latents: Any, states: Any) -> Any:
        return predicted(network, parameters, latents, states)

    held = {
        "parameters": _parameters(network, shapes_of(network, family), mesh),
        "latents": jax.ShapeDtypeStruct((1, *family.latents), "float32", sharding=everywhere),
        "prompt": jax.ShapeDtypeStruct((1, *family.prompt), "bfloat16", sharding=everywhere),
    }
    return _work(f"a call of {name}, one video", forward, held)


def video_of(name: str, mesh: Mesh) -> tuple[Work, ...]:
    """Returns what makes a video of each part of a batch, with guidance: prompts, rows, frames.

    Networks are in bfloat16; the video is decoded in the pieces that the pipeline decodes.
    """
    family, videos = FAMILIES[name], parts(mesh)
    tiny = {**_TINY, "d_model": family.prompt[1]} if name == "wan-tiny" else {}
    encoder: Any = text_encoder(_TEXTS[family.pipeline] | tiny, PieceTokenizer(""))
    network, coder = network_of(family, "bfloat16"), autoencoder_of(family, "bfloat16")
    rules = Sampling(None, None, solver=UniPC(), guidance=ClassifierFree(5.0))
    process = rectified_flow(thousandths)
    system = System(encoder, network, coder, process, sampling=rules)
    check_rows(mesh, videos, system.branches_at_once)
    split, rows = batch_sharding(mesh), 2 * videos
    ids = jax.ShapeDtypeStruct((rows, family.prompt[0]), "int32", sharding=split)

    def tell(parameters: PyTree, ids: Any) -> Any:
        return encoder.apply({"params": parameters}, ids)

    one = jnp.zeros((1, 8), int)
    words = jax.eval_shape(lambda: encoder.init(jax.random.key(0), one)["params"])
    text = {"parameters": _parameters(encoder, words, mesh), "prompts": ids}
    latents = (videos, *family.latents)
    return (
        _work(f"prompts of {name}, {rows}", tell, text),
        _rows(name, system, latents, mesh),
        _decoder(name, coder, latents, mesh),
    )


def _rows(name: str, system: System, latents: tuple[int, ...], mesh: Mesh) -> Work:
    """Returns a row of a run, of `ROWS`."""
    system, family = system.only("model", *OF_A_ROW), FAMILIES[name]
    matrix = synchronous(linspace_levels(ROWS), latents[1])
    seeds = jax.ShapeDtypeStruct((latents[0],), "uint32")
    begin = jax.eval_shape(
        lambda seeds: programs.begin(system, matrix, seeds, None, (), latents, None), seeds
    )
    everywhere = NamedSharding(mesh, PartitionSpec())

    def placed(leaf: Any) -> Any:
        own = leaf.shape[:1] == latents[:1]
        place = batch_sharding(mesh) if own else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    def row(parameters: PyTree, told: Any, state: Any) -> Any:
        given = (system, {"model": parameters}, Conditions(TextStates(*told)), matrix)
        return (programs.denoise_row(*given, state, jnp.int32(0), mesh),)

    states = ((2 * latents[0], *family.prompt), "bfloat16"), ((2 * latents[0],), "int32")
    held = {
        "parameters": _parameters(system.model, shapes_of(system.model, family), mesh),
        "prompts": tuple(jax.ShapeDtypeStruct(*of, sharding=everywhere) for of in states),
        "latents and solver": jax.tree.map(placed, begin),
    }
    what = f"a row of {name}, {latents[0]} guided videos"
    return _work(what, row, held, ("latents and solver",), ROWS)


def _decoder(name: str, coder: Any, latents: tuple[int, ...], mesh: Mesh) -> Work:
    """Returns what decodes the next latent frames of a video, or all at once."""
    frame = jnp.zeros((1, 1, *(2 * side for side in coder.strides[1:]), 3))
    shapes = jax.eval_shape(lambda: coder.init(jax.random.key(0), frame)["params"])
    held: dict[str, Any] = {"parameters": _parameters(coder, shapes, mesh)}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def frames(z: Any) -> Any:
        return constrain(z, "batch", "frames", "lines")

    with using(mesh):
        count = pieces(coder, latents)[1] if hasattr(coder, "decode_chunk") else latents[1]
    given = jax.ShapeDtypeStruct((latents[0], count, *latents[2:]), "float32", sharding=everywhere)

    def whole(parameters: PyTree, z: Any) -> Any:
        return frames(coder.apply({"params": parameters}, frames(z), method="decode"))

    if count == latents[1]:
        held["latents"] = given
        return _work(f"decoding of {name}", whole, held)

    def piece(parameters: PyTree, z: Any, carry: Any) -> Any:
        made, carry = coder.apply({"params": parameters}, frames(z), carry, method="decode_chunk")
        return frames(made), carry

    first = jax.ShapeDtypeStruct((latents[0], 1, *latents[2:]), "float32")
    carry = jax.eval_shape(lambda p, z: piece(p, z, None)[1], shapes, first)
    held |= {"latents": given, "frames before": _placed(carry, everywhere)}
    times = -(-latents[1] // count)
    return _work(f"decoding of {name}, {count} frames", piece, held, (None, "frames before"), times)


def _work(
    name: str,
    run: Callable[..., Any],
    held: Mapping[str, PyTree],
    gives: tuple[str | None, ...] = (),
    times: int = 1,
) -> Work:
    """Returns a work whose operations are counted; `gives` is empty where all results are new."""
    flops, largest = counted(run, *held.values())
    return Work(name, run, held, gives, times * flops, largest, times)


def _parameters(network: Any, shapes: PyTree, mesh: Mesh) -> PyTree:
    """Returns parameters in the number types in which they are used, placed on the mesh."""
    kind = kind_in(network)

    def typed(path: Any, leaf: Any, place: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, kind(path, leaf.dtype), sharding=place)

    return jax.tree_util.tree_map_with_path(typed, shapes, shardings(shapes, mesh))


def _placed(tree: PyTree, place: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
