"""Wan 2.1 and 2.2: a folder of Diffusers as a system, and back.

`jvdm.load("Wan2.1-T2V-1.3B-Diffusers")` and `jvdm generate --weights FOLDER` read it. The tables
say what the published weights call the parameters of our networks. Sizes and levels are those of
the folder. The first frame of Wan2.2-TI2V is given by `image`: its column of the timestep matrix
is 0, which is all that Diffusers' `expand_timesteps` does. To the other networks of pictures
`image` and `last_image` are told beside the noisy latents; those of Wan 2.1 also read, beside the
prompt, what the vision encoder in `image_encoder` makes of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jvdm.errors import WeightsError
from jvdm.models.clip import ClipVision
from jvdm.models.clip_published import unread, vision_encoder, vision_encoder_names
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
from jvdm.weights.diffusers import (
    CONFIG,
    Published,
    Source,
    check_class,
    check_latents,
    find_tensors,
    read_config,
    warn_of_unread,
)

Config = Mapping[str, Any]

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
"""Classes of Diffusers whose folders are read here."""

FOLDERS = {"text": "text_encoder", "model": "transformer", "vae": "vae"}
CLASSES = {"model": ("WanTransformer3DModel",), "vae": ("AutoencoderKLWan",)}
VISION = "image_encoder"  # of Wan 2.1 of pictures
PICTURES = "image_processor/preprocessor_config.json"
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
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "blocks.{}.cross_attn.k_img": "blocks.{}.attn2.add_k_proj",
    "blocks.{}.cross_attn.v_img": "blocks.{}.attn2.add_v_proj",
    "blocks.{}.cross_attn.norm_k_img": "blocks.{}.attn2.norm_added_k",
}
"""What Diffusers calls the modules of the transformer in the code of Wan-Video/Wan2.1."""
TOKENIZER = "tokenizer/tokenizer.json"
STATISTICS = ("latents_mean", "latents_std")


SMALL_SHIFT = 3.0  # of 480 x 832; 5 for 720 x 1280 of a first picture, 16 of a first and a last


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
I2V_2_1 = WAN_2_1._replace(steps=40)
LARGE = Defaults(height=720, width=1280, num_frames=81, fps=16.0)
TI2V_2_2 = Usual(
    Defaults(height=704, width=1280, num_frames=121, fps=24.0), ((704, 1280), (1280, 704))
)
A14B_2_2 = WAN_2_1._replace(
    defaults=LARGE,
    steps=40,
    scale=4.0,
    scale_2=3.0,
)
A14B_I2V_2_2 = A14B_2_2._replace(scale=3.5, scale_2=3.5)


def usual(index: Config, scheduler: Config, model: Config) -> Usual:
    """Returns how videos of a pipeline are usually made.

    Source: the settings beside the official code (`wan/configs` of Wan-Video/Wan2.1 and Wan2.2).

    Args:
        index: What `model_index.json` says.
        scheduler: What the scheduler's configuration says; of the networks of one architecture,
            those for large pictures have the larger shift.
        model: What the transformer's says.
    """
    of_pictures = index["_class_name"] == "WanImageToVideoPipeline"
    if index.get("boundary_ratio"):
        return A14B_I2V_2_2 if of_pictures else A14B_2_2
    if not of_pictures or index.get("expand_timesteps"):
        return TI2V_2_2 if index.get("expand_timesteps") else WAN_2_1
    how = WAN_2_1 if model.get("pos_embed_seq_len") else I2V_2_1
    return how._replace(defaults=LARGE) if scheduler.get("flow_shift", 0.0) > SMALL_SHIFT else how


def manifest(folder: Path, index: Config) -> Published:
    """Returns what a published folder holds.

    Args:
        folder: The folder.
        index: What its `model_index.json` says.

    Raises:
        WeightsError: If a part is missing or cannot be read, or is one that jvdm does not know.
    """
    boundary, scheduler = index.get("boundary_ratio"), read_config(folder / SCHEDULER)
    configs = {name: read_config(folder / place / CONFIG) for name, place in FOLDERS.items()}
    known = (*FOLDERS.values(), SECOND, VISION, "image_processor", "scheduler", "tokenizer")
    warn_of_unread(folder, index, known)
    for name, classes in CLASSES.items():
        check_class(folder / FOLDERS[name] / CONFIG, configs[name], classes)
    how = usual(index, scheduler, configs["model"])
    second = read_config(folder / SECOND / CONFIG) if boundary else configs["model"]
    tokenizer = PieceTokenizer(str((folder / TOKENIZER).absolute()))
    try:
        text, coder = text_encoder(configs["text"], tokenizer), vae(configs["vae"])
        model = transformer(configs["model"], boundary)
        alike = transformer(second, boundary) == model
        rules = sampling(scheduler, how, boundary)
        vision = _vision(folder, model)
        statistics = {name: tuple(configs["vae"][name]) for name in STATISTICS}
    except (KeyError, TypeError, IndexError) as error:
        what = f"a configuration in {folder} is not as Wan has it"
        raise WeightsError(what, f"{error!r}"[:200], "download the folder again") from error
    if not alike:
        what = f"{folder}: {FOLDERS['model']} and {SECOND} are networks of different sizes"
        raise WeightsError(what, "one takes over from the other", "download the folder again")
    channels = {"transformer": model.latent_channels, "vae": coder.latent_channels}
    check_latents(folder, channels, statistics)
    system = System(text, model, coder, rules[0], sampling=rules[1], vision=vision)
    return Published(
        family="wan",
        components={name: to_data(part, name) for name, part in system.networks.items()},
        latent_mean=statistics["latents_mean"],
        latent_std=statistics["latents_std"],
        defaults=how.defaults,
        trained_frames=how.defaults.num_frames,
        trained_sizes=how.sizes,
        rules=rules_of(system),
        sources=sources(system, folder),
    )


def _vision(folder: Path, model: WanDiT) -> ClipVision | None:
    """Returns the encoder of the pictures whose states a network reads, None where it reads none.

    Raises:
        WeightsError: If the folder has none, or its states are not those that the network reads.
    """
    if not model.reads_pictures:
        return None
    config, processor = (read_config(folder / place) for place in (f"{VISION}/{CONFIG}", PICTURES))
    vision = vision_encoder(config, processor)
    made, side = vision.width, config["image_size"] // vision.patch
    count = 2 * (1 + side**2)
    if made != model.picture_width or model.picture_places not in (0, count):
        what = f"{folder}/{VISION} makes {count // 2} states of {made} features of a picture"
        why = f"{FOLDERS['model']} reads {model.picture_places or 'any'} of {model.picture_width}"
        raise WeightsError(what, why, "download the folder again")
    return vision


def sources(system: System, folder: Path) -> dict[str, Source | Mapping[str, Source]]:
    """Returns where the parameters of every component of a system in `folder` are published."""
    names, places = transformer_names(system.model), (FOLDERS["model"], SECOND)
    model = [Source(place, names) for place in places]
    is_two = isinstance(system.model, WanExperts)
    found: dict[str, Source | Mapping[str, Source]] = {
        "text": Source(FOLDERS["text"], text_encoder_names(system.text), "model"),
        "model": dict(zip(EXPERTS, model, strict=True)) if is_two else model[0],
        "vae": Source(FOLDERS["vae"], vae_names(system.vae)),
    }
    if system.vision is not None:
        rest = unread(system.vision, find_tensors(folder / VISION)[0])
        names = vision_encoder_names(system.vision)
        found["vision"] = Source(VISION, names, "model", others=rest)
    return found


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
        picture_width=config.get("image_dim") or 0,
        picture_places=config.get("pos_embed_seq_len") or 0,
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
    rules += _picture_names(model) if model.reads_pictures else []
    unused = (r"blocks\.\d+\.attn2\.norm_added_q\.weight",)
    return Table(tuple(rules), ignored=unused, originals=ORIGINALS)


def _picture_names(model: WanDiT) -> list[Rule]:
    """Returns the rules of what reads the states of pictures."""
    theirs, places = "condition_embedder.image_embedder", bool(model.picture_places)
    rules = [Rule(f"{theirs}.pos_embed", "picture_places", FIRST)] if places else []
    for name, ours in (("norm1", "in"), ("norm2", "out")):
        rules.append(Rule(f"{theirs}.{name}.weight", f"picture_norm_{ours}/scale"))
        rules.append(Rule(f"{theirs}.{name}.bias", f"picture_norm_{ours}/bias"))
    rules += linear(f"{theirs}.ff.net.0.proj", "picture_hidden")
    rules += linear(f"{theirs}.ff.net.2", "picture_out")
    for part in "kv":
        rules += linear(f"blocks.{{}}.attn2.add_{part}_proj", f"layers/picture_{part}")
    # Heads of the prompt do not turn, and neither do those of pictures.
    rules.append(Rule("blocks.{}.attn2.norm_added_k.weight", "layers/picture_k_norm/gain"))
    return rules
