"""LTX-Video: a folder of Diffusers as a system, and back.

`jvdm.load("LTX-Video")` and `jvdm generate --weights FOLDER` read it: 0.9.0 and 0.9.1
(`LTXPipeline`), 0.9.5 and the 13B models (`LTXConditionPipeline`). Sizes and levels are those of
the folder. A given picture or clip is kept exactly, by a column of the timestep matrix at level 0,
as `LTXImageToVideoPipeline` does, and `LTXConditionPipeline` without `image_cond_noise_scale`, the
noise that it adds to it at every step. The latent upsampler of 0.9.7 and 0.9.8
(`LTXLatentUpsamplePipeline`) is not read.

`jvdm.load("ltxv-2b-0.9.5.safetensors:FOLDER")` reads a single file of the original code with the
T5 encoder and tokenizer of a folder. The file's arrays say how large its
networks are, its metadata, if it has some, what they do not: heads, levels, where cells are.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.errors import WeightsError
from jvdm.models.ltx import LTXDiT
from jvdm.models.published import attention_names
from jvdm.samplers import (
    ClassifierFree,
    DiffusersLevels,
    Euler,
    ExplicitLevels,
    LevelsRule,
    LinearQuadraticLevels,
    rectified_flow,
    thousandths,
)
from jvdm.system import Sampling, System, rules_of
from jvdm.text.pieces import PieceTokenizer
from jvdm.text.published import text_encoder, text_encoder_names
from jvdm.vae.ltx_published import LATER as LATER_BLOCK
from jvdm.vae.ltx_published import vae, vae_names
from jvdm.vae.ltx_single import Shapes, vae_config
from jvdm.vae.original import STATISTICS as STATISTICS_OF
from jvdm.values import to_data
from jvdm.weights import Defaults
from jvdm.weights.convert import Rule, Table, linear
from jvdm.weights.diffusers import (
    CONFIG,
    Published,
    Source,
    check_class,
    check_latents,
    read_config,
    read_tensors,
    warn_of_unread,
)
from jvdm.weights.folder import INDEX
from jvdm.weights.single import Described

Config = Mapping[str, Any]

LATER = "LTXConditionPipeline"
PIPELINES = ("LTXPipeline", "LTXImageToVideoPipeline", LATER)
"""Classes of Diffusers whose folders are read here."""

DEFAULTS = Defaults(height=512, width=704, num_frames=161, fps=25.0)
SIZES = (
    *((512, 704), (512, 768), (480, 704), (480, 832), (704, 1216)),
    *((704, 512), (768, 512), (704, 480), (832, 480), (1216, 704)),
)
TRAINED_FRAMES = 257  # README of the published weights
STEPS, SCALE = 50, 3.0  # of the published pipelines
HEADS = 32  # of all published models
DISTILLED = "allowed_inference_steps"  # levels of a distilled model, in its file's metadata
PROMPT, LATER_PROMPT = 128, 256  # tokens that they read
LEVEL, NOISE = 0.05, 0.025  # `decode_timestep`, `decode_noise_scale` of the model cards
FOLDERS = {"text": "text_encoder", "model": "transformer", "vae": "vae"}
CLASSES = {"model": ("LTXVideoTransformer3DModel",), "vae": ("AutoencoderKLLTXVideo",)}
SCHEDULER, EULER = "scheduler/scheduler_config.json", "FlowMatchEulerDiscreteScheduler"
TOKENIZERS = ("tokenizer/tokenizer.json", "tokenizer/spiece.model")
STATISTICS = ("latents_mean", "latents_std")
SIGNATURE = {
    *("patchify_proj.weight", "adaln_single.linear.weight", "proj_out.weight"),
    *("caption_projection.linear_1.weight", "transformer_blocks.0.attn2.to_k.weight"),
}
"""Arrays of the original code by which a single file is known."""
AUDIO = "audio_patchify_proj.weight"  # LTX-2 has the same names, and sound
SHIFTED = {
    **{"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05},
    **{"base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift_terminal": 0.1},
}
"""Levels of 0.9.0 and 0.9.1, as their folders have them."""

ORIGINALS = {
    "patchify_proj": "proj_in",
    "adaln_single.emb.timestep_embedder.linear_1": "time_embed.emb.timestep_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_2": "time_embed.emb.timestep_embedder.linear_2",
    "adaln_single.linear": "time_embed.linear",
    **{
        f"transformer_blocks.{{}}.{attention}.{part}_norm": (
            f"transformer_blocks.{{}}.{attention}.norm_{part}"
        )
        for attention in ("attn1", "attn2")
        for part in "qk"
    },
}
"""What Diffusers calls the modules of the transformer in the code of Lightricks/LTX-Video."""


def manifest(folder: Path, index: Config) -> Published:
    """Returns what a published folder holds.

    Args:
        folder: The folder.
        index: What its `model_index.json` says.

    Raises:
        WeightsError: If a part is missing or cannot be read.
    """
    later = index.get("_class_name") == LATER
    configs = {name: read_config(folder / place / CONFIG) for name, place in FOLDERS.items()}
    warn_of_unread(folder, index, (*FOLDERS.values(), "scheduler", "tokenizer", DISTILLED))
    for name, classes in CLASSES.items():
        check_class(folder / FOLDERS[name] / CONFIG, configs[name], classes)
    rules = sampling(read_config(folder / SCHEDULER), later, index.get(DISTILLED) or ())
    buffers = _statistics(folder / FOLDERS["vae"])
    try:
        text = text_encoder(configs["text"], _tokenizer(folder, later)).clone(reads_padding=True)
        coder = vae(configs["vae"], LEVEL, NOISE)
        model = transformer(configs["model"])
        model = model.clone(strides=coder.strides, from_first=later)
        std = buffers["latents_std"] / configs["vae"]["scaling_factor"]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        what = f"a configuration in {folder} is not as LTX-Video has it"
        raise WeightsError(what, f"{error!r}"[:200], "download the folder again") from error
    channels = {"transformer": model.latent_channels, "vae": coder.latent_channels}
    check_latents(folder, channels, buffers)
    system = System(text, model, coder, rectified_flow(thousandths), sampling=rules)
    return Published(
        family="ltx",
        components={name: to_data(getattr(system, name), name) for name in FOLDERS},
        latent_mean=tuple(buffers["latents_mean"].astype(float).tolist()),
        latent_std=tuple(std.astype(float).tolist()),
        defaults=DEFAULTS,
        trained_frames=TRAINED_FRAMES,
        trained_sizes=SIZES,
        rules=rules_of(system),
        sources={
            "text": Source(FOLDERS["text"], text_encoder_names(text), "model"),
            "model": Source(FOLDERS["model"], transformer_names(model)),
            "vae": Source(FOLDERS["vae"], vae_names(coder), others=buffers),
        },
    )


def _tokenizer(folder: Path, later: bool) -> PieceTokenizer:
    """Returns how prompts are read: by the file that is there."""
    paths = [folder / name for name in TOKENIZERS]
    path = next((path for path in paths if path.is_file()), paths[0])
    length = LATER_PROMPT if later else PROMPT
    return PieceTokenizer(str(path.absolute()), length, unescapes=False)


def _statistics(folder: Path) -> dict[str, np.ndarray]:
    """Returns mean and deviation of latents, which lie beside the weights of the autoencoder."""
    tensors = read_tensors(folder)
    lost = [name for name in STATISTICS if name not in tensors]
    if lost:
        why = "latents are standardised by what these weights say"
        raise WeightsError(f"{folder} lacks {', '.join(lost)}", why, "download it again")
    return {name: np.asarray(tensors[name]) for name in STATISTICS}


def sampling(config: Config, later: bool, distilled: Sequence[float] = ()) -> Sampling:
    """Returns how a scheduler's configuration says that videos are made.

    Args:
        config: What the file says.
        later: Whether the pipeline brings levels of its own, as that of 0.9.5 does.
        distilled: Levels of a distilled model, which is not guided; empty for others.

    Raises:
        WeightsError: If it is of another class, or changes levels that the pipeline brings.
    """
    name = config.get("_class_name")
    if name != EULER:
        what = f"a scheduler of the class {name}"
        why = f"LTX-Video is sampled by {EULER}"
        raise WeightsError(what, why, "restore scheduler_config.json")
    changes = [key for key in ("use_dynamic_shifting", "shift_terminal") if config.get(key)]
    changes += ["shift"] if config.get("shift", 1.0) != 1.0 else []
    if later and changes:
        what = f"a scheduler with {', '.join(changes)}"
        raise WeightsError(what, f"{LATER} has levels of its own", "restore scheduler_config.json")
    if distilled:
        levels = ExplicitLevels(tuple(map(float, distilled)))
        return Sampling(levels, solver=Euler(), guidance=ClassifierFree(1.0))
    levels: LevelsRule = LinearQuadraticLevels(STEPS)
    if not later:
        tokens = 21 * 16 * 22  # of the default size; a run says its own
        levels = DiffusersLevels(STEPS, json.dumps(dict(config)), evenly=True, tokens=tokens)
    return Sampling(levels, solver=Euler(), guidance=ClassifierFree(SCALE))


def transformer(config: Config) -> LTXDiT:
    """Returns the network that `transformer/config.json` describes."""
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    return LTXDiT(
        width=heads * size,
        depth=config["num_layers"],
        latent_channels=config["in_channels"],
        head_dim=size,
        mlp_width=4 * heads * size,
    )


def transformer_names(model: LTXDiT) -> Table:
    """Returns what `LTXVideoTransformer3DModel` calls the parameters of the network."""
    layer = "transformer_blocks.{}"
    rules = [
        *linear("proj_in", "patch_in"),
        *linear("time_embed.emb.timestep_embedder.linear_1", "time_hidden"),
        *linear("time_embed.emb.timestep_embedder.linear_2", "time_out"),
        *linear("time_embed.linear", "modulation"),
        *linear("caption_projection.linear_1", "text_hidden"),
        *linear("caption_projection.linear_2", "text_out"),
        Rule("scale_shift_table", "head_modulation"),
        *linear("proj_out", "patch_out"),
        Rule(f"{layer}.scale_shift_table", "layers/modulation"),
        *linear(f"{layer}.ff.net.0.proj", "layers/up"),
        *linear(f"{layer}.ff.net.2", "layers/down"),
        *attention_names(layer, model.head_dim),
    ]
    # A file of the original code holds the autoencoder too.
    return Table(tuple(rules), ignored=(r"vae\..*",), originals=ORIGINALS)


def single(shapes: Shapes, said: Config) -> Described | None:
    """Returns what a folder would say of a single file, None if it is not of LTX-Video.

    Args:
        shapes: Shapes of its arrays by name, those of the transformer without a prefix.
        said: The configuration in its metadata, empty if there is none.

    Raises:
        WeightsError: If it is of LTX-Video, and has no autoencoder, or one that is not known.
    """
    if not shapes.keys() >= SIGNATURE or AUDIO in shapes:
        return None
    coder = {name[4:]: shape for name, shape in shapes.items() if name.startswith("vae.")}
    if not coder:
        why = "how videos become latents is in no other file that was given"
        fix = "put it into a folder of Diffusers of this model, or give the file that has both"
        raise WeightsError("the file holds the transformer of LTX-Video alone", why, fix)
    parts = {name: dict(said.get(name) or {}) for name in ("transformer", "vae", "scheduler")}
    config, network = vae_config(coder, parts["vae"]), _transformer(shapes, parts["transformer"])
    later = config["down_block_types"][-1] == LATER_BLOCK
    later = parts["transformer"].get("causal_temporal_positioning", later)
    rules: dict[str, Any] = {"_class_name": EULER, "num_train_timesteps": 1000, "shift": 1.0}
    if not later:
        told = parts["scheduler"].get("target_shift_terminal")
        rules |= SHIFTED if told is None else SHIFTED | {"shift_terminal": told}
    index = {"_class_name": LATER if later else PIPELINES[0]}
    if steps := said.get(DISTILLED):
        index[DISTILLED] = steps
    configs = {INDEX: index, SCHEDULER: rules}
    configs |= {f"{FOLDERS['vae']}/{CONFIG}": config, f"{FOLDERS['model']}/{CONFIG}": network}
    names = {name: f"vae.{theirs}" for theirs, name in STATISTICS_OF.items()}
    return Described(configs, {FOLDERS["vae"]: names})


def _transformer(shapes: Shapes, said: Config) -> dict[str, Any]:
    """Returns `transformer/config.json` of Diffusers for arrays of the original code."""
    width, channels = shapes["patchify_proj.weight"]
    heads = said.get("num_attention_heads", HEADS)
    if not heads or width % heads:
        what = f"its metadata say that {width} features are those of {heads} heads"
        raise WeightsError(what, "they have as many each", "download the file again")
    found = [re.match(r"transformer_blocks\.(\d+)\.", name) for name in shapes]
    return {
        **{"_class_name": CLASSES["model"][0], "in_channels": channels},
        **{"out_channels": shapes["proj_out.weight"][0], "patch_size": 1, "patch_size_t": 1},
        **{"num_attention_heads": heads, "attention_head_dim": width // heads},
        "num_layers": len({part[1] for part in found if part}),
        "cross_attention_dim": shapes["transformer_blocks.0.attn2.to_k.weight"][1],
        "caption_channels": shapes["caption_projection.linear_1.weight"][1],
        **{"qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False},
        **{"norm_eps": 1e-6, "activation_fn": "gelu-approximate"},
        **{"attention_bias": True, "attention_out_bias": True},
    }
