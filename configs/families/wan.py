"""Wan 2.1 and 2.2: a folder of Diffusers as a system, and back.

`jvdm.load("Wan2.1-T2V-1.3B-Diffusers")` and `jvdm generate --weights FOLDER` read it. The tables
say what the published weights call the parameters of our networks. Sizes and levels are those of
the folder. The first frame of Wan2.2-TI2V is given by `image`: its column of the timestep matrix
is 0, which is all that Diffusers' `expand_timesteps` does.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jvdm.errors import WeightsError
from jvdm.models.published import attention_names
from jvdm.models.wan import EXPERTS, WanDiT, WanExperts, experts
from jvdm.samplers import (
    ClassifierFree,
    DiffusersLevels,
    Euler,
    Process,
    Solver,
    TwoScales,
    UniPC,
    rectified_flow,
    thousandths,
    whole_thousandths,
)
from jvdm.system import Sampling, System, rules_of
from jvdm.text.pieces import PieceTokenizer
from jvdm.text.published import text_encoder, text_encoder_names
from jvdm.vae.wan_published import vae, vae_names
from jvdm.values import to_data
from jvdm.weights import Defaults
from jvdm.weights.convert import (
    CONV_3D,
    FIRST,
    Rule,
    Table,
    joined,
    linear,
)
from jvdm.weights.diffusers import CONFIG, Published, Source, read_config

Config = Mapping[str, Any]

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
"""Classes of Diffusers whose folders are read here."""

FOLDERS = {"text": "text_encoder", "model": "transformer", "vae": "vae"}
SECOND = "transformer_2"  # of Wan 2.2 A14B, for low noise levels
SCHEDULER = "scheduler/scheduler_config.json"
ORIGINALS = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
    "blocks.{}.modulation": "blocks.{}.scale_shift_table",
    "blocks.{}.norm3": "blocks.{}.norm2",
    "blocks.{}.ffn.0": "blocks.{}.ffn.net.0.proj",
    "blocks.{}.ffn.2": "blocks.{}.ffn.net.2",
    **{
        f"blocks.{{}}.{theirs}_attn.{part}": f"blocks.{{}}.{ours}.{name}"
        for theirs, ours in (("self", "attn1"), ("cross", "attn2"))
        for part, name in zip(
            ("q", "k", "v", "o", "norm_q", "norm_k"),
            ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k"),
            strict=True,
        )
    },
}
"""What Diffusers calls the modules of the transformer in the code of Wan-Video/Wan2.1."""
TOKENIZER = "tokenizer/tokenizer.json"


class Usual(NamedTuple):
    """How the videos of one kind of Wan are usually made: sizes trained, steps, scales."""

    defaults: Defaults
    sizes: tuple[tuple[int, int], ...]
    steps: int = 50
    scale: float = 5.0
    scale_2: float | None = None
    """Scale below the level at which the second network begins, None where there is none."""


WAN_2_1 = Usual(
    Defaults(height=480, width=832, num_frames=81, fps=16.0),
    ((480, 832), (832, 480), (720, 1280), (1280, 720)),
)
TI2V_2_2 = Usual(
    Defaults(height=704, width=1280, num_frames=121, fps=24.0), ((704, 1280), (1280, 704))
)
A14B_2_2 = WAN_2_1._replace(
    defaults=Defaults(height=720, width=1280, num_frames=81, fps=16.0),
    steps=40,
    scale=4.0,
    scale_2=3.0,
)
A14B_I2V_2_2 = A14B_2_2._replace(scale=3.5, scale_2=3.5)


def usual(index: Config) -> Usual:
    """Returns how videos of a pipeline are usually made.

    Source: the settings beside the official code (`wan/configs` of Wan-Video/Wan2.1 and Wan2.2).
    """
    of_pictures = index["_class_name"] == "WanImageToVideoPipeline"
    if index.get("boundary_ratio"):
        return A14B_I2V_2_2 if of_pictures else A14B_2_2
    return TI2V_2_2 if index.get("expand_timesteps") else WAN_2_1


def manifest(folder: Path, index: Config) -> Published:
    """Returns what a published folder holds.

    Args:
        folder: The folder.
        index: What its `model_index.json` says.

    Raises:
        WeightsError: If a part is missing or cannot be read, or is one that jvdm does not know.
    """
    if (index.get("image_encoder") or [None])[0]:
        what = f"{folder} is a pipeline with an image_encoder"
        raise WeightsError(what, "jvdm has none for Wan", "use Wan2.2-TI2V-5B or Wan2.2-I2V-A14B")
    how = usual(index)
    boundary = index.get("boundary_ratio")
    configs = {name: read_config(folder / place / CONFIG) for name, place in FOLDERS.items()}
    second = read_config(folder / SECOND / CONFIG) if boundary else configs["model"]
    tokenizer = PieceTokenizer(str((folder / TOKENIZER).absolute()))
    try:
        text, coder = text_encoder(configs["text"], tokenizer), vae(configs["vae"])
        model = transformer(configs["model"], boundary)
        alike = transformer(second, boundary) == model
        rules = sampling(read_config(folder / SCHEDULER), how, boundary)
        mean, std = (tuple(configs["vae"][f"latents_{name}"]) for name in ("mean", "std"))
    except (KeyError, TypeError, IndexError) as error:
        what = f"a configuration in {folder} is not as Wan has it"
        raise WeightsError(what, f"{error!r}"[:200], "download the folder again") from error
    if not alike:
        what = f"{folder}: {FOLDERS['model']} and {SECOND} are networks of different sizes"
        raise WeightsError(what, "one takes over from the other", "download the folder again")
    system = System(text, model, coder, rules[0], sampling=rules[1])
    return Published(
        family="wan",
        components={name: to_data(getattr(system, name), name) for name in FOLDERS},
        latent_mean=mean,
        latent_std=std,
        defaults=how.defaults,
        trained_frames=how.defaults.num_frames,
        trained_sizes=how.sizes,
        rules=rules_of(system),
        sources=sources(system),
    )


def sources(system: System) -> dict[str, Source | Mapping[str, Source]]:
    """Returns where the parameters of every component of a system are published."""
    names, folders = transformer_names(system.model), (FOLDERS["model"], SECOND)
    model = [Source(folder, names) for folder in folders]
    is_two = isinstance(system.model, WanExperts)
    return {
        "text": Source(FOLDERS["text"], text_encoder_names(system.text), "model"),
        "model": dict(zip(EXPERTS, model, strict=True)) if is_two else model[0],
        "vae": Source(FOLDERS["vae"], vae_names(system.vae)),
    }


def sampling(
    config: Config, how: Usual = WAN_2_1, boundary: float | None = None
) -> tuple[Process, Sampling]:
    """Returns how a scheduler's configuration says that videos are made.

    Args:
        config: What it says.
        how: What it does not say.
        boundary: Level at which the second network begins, if there is one.

    Raises:
        WeightsError: If it is of another class, or does not predict velocities of a flow.
    """
    name, solver = config.get("_class_name"), None
    if name == "UniPCMultistepScheduler" and config.get("prediction_type") == "flow_prediction":
        solver = _unipc(config)
        process = rectified_flow(whole_thousandths)
    elif name == "FlowMatchEulerDiscreteScheduler":
        solver, process = Euler(), rectified_flow(thousandths)
    if solver is None:
        what = f"a scheduler {name} of prediction type {config.get('prediction_type')}"
        why = "Wan is sampled by UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler"
        raise WeightsError(what, why, "restore scheduler_config.json")
    levels = DiffusersLevels(how.steps, json.dumps(dict(config)))
    guidance = ClassifierFree(how.scale)
    if boundary and how.scale_2 is not None:
        guidance = TwoScales(how.scale, how.scale_2, boundary)
    return process, Sampling(levels, solver=solver, guidance=guidance)


def _unipc(config: Config) -> Solver:
    return UniPC(
        order=config["solver_order"],
        rule=config["solver_type"],
        lower_order_final=config["lower_order_final"],
    )


def transformer(config: Config, boundary: float | None = None) -> WanDiT:
    """Returns the network that `transformer/config.json` describes.

    Args:
        config: What the file says.
        boundary: Level at which a second one like it takes over, if there is one.
    """
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    network = WanDiT(
        width=heads * size,
        depth=config["num_layers"],
        latent_channels=config["out_channels"],
        mask_channels=max(config["in_channels"] - 2 * config["out_channels"], 0),
        head_dim=size,
        mlp_width=config["ffn_dim"],
        patch=config["patch_size"][1],
        frequencies=config["freq_dim"] // 2,
        cross_norm=config["cross_attn_norm"],
    )
    return network if boundary is None else experts(network, 1000.0 * boundary)


def transformer_names(model: WanDiT) -> Table:
    """Returns what `WanTransformer3DModel` calls the parameters of the network."""
    side = model.patch
    rules = [
        *linear("patch_embedding", "patch_in", CONV_3D.then(joined(1, side, side, -1))),
        *linear("condition_embedder.time_embedder.linear_1", "time_hidden"),
        *linear("condition_embedder.time_embedder.linear_2", "time_out"),
        *linear("condition_embedder.time_proj", "modulation"),
        *linear("condition_embedder.text_embedder.linear_1", "text_hidden"),
        *linear("condition_embedder.text_embedder.linear_2", "text_out"),
        Rule("scale_shift_table", "head_modulation", FIRST),
        *linear("proj_out", "patch_out"),
        Rule("blocks.{}.scale_shift_table", "layers/modulation", FIRST),
        *linear("blocks.{}.ffn.net.0.proj", "layers/up"),
        *linear("blocks.{}.ffn.net.2", "layers/down"),
        *attention_names("blocks.{}", model.head_dim),
    ]
    if model.cross_norm:
        rules.append(Rule("blocks.{}.norm2.weight", "layers/cross_norm/scale"))
        rules.append(Rule("blocks.{}.norm2.bias", "layers/cross_norm/bias"))
    unused = (r"blocks\.\d+\.attn2\.norm_added_q\.weight",)
    return Table(tuple(rules), ignored=unused, originals=ORIGINALS)
