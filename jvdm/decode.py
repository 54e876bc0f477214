"""Finishes a run from its saved latents: `jvdm decode LATENTS`."""

import dataclasses
from pathlib import Path
from typing import Any

from jvdm import files, outputs
from jvdm.errors import ConfigError
from jvdm.media import check_fps
from jvdm.outputs import LATENTS_SUFFIX
from jvdm.pipeline import load
from jvdm.reading import checked
from jvdm.stages import measuring, table
from jvdm.video import Video


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """What to decode, and where to."""

    latents: Path
    """File that `jvdm generate` wrote; it ends in .latents.safetensors."""
    weights: str | None = None
    """Weights folder; the one that made the latents if left out."""
    fps: float | None = None
    """Frame rate of the file; that of the run if left out."""
    output: Path | None = None
    """Folder, or the name of an .mp4, .webm or .gif file; beside the latents if left out."""


def run(options: DecodeOptions) -> dict[str, Any]:
    """Carries out `jvdm decode`.

    Returns:
        `videos`: the record of the video; `seconds`: time of each stage.

    Raises:
        WeightsError: If the latents or the weights are missing or broken.
        ConfigError: If the latents belong to other weights, or nothing can be written.
    """
    if options.fps is not None:
        check_fps("--fps", options.fps)
    path = options.latents.expanduser()
    latents, record = outputs.load_latents(path)
    stem = path.name.removesuffix(LATENTS_SUFFIX)
    wanted = outputs.named(options.output or path.parent, stem)
    outputs.probe(wanted)
    settings = dict(record.settings)
    for name, kind in {"fps": float, "weights": str | None, "dtype": str | None}.items():
        settings[name] = checked(kind, settings.get(name), f"settings.{name}", options.latents)
    pipe = load(options.weights or settings.get("weights"), dtype=settings.get("dtype"))
    if latents.shape[-1] != (channels := pipe.system.vae.latent_channels):
        what = f"{options.latents} holds latents of {latents.shape[-1]} channels"
        raise ConfigError(what, f"this autoencoder has {channels}", "give other latents")
    file = pipe.manifest.file_of("vae")
    made_by, here = (entry.get(file) for entry in (record.weights.get("sha256", {}), pipe.identity))
    if made_by != here:
        raise ConfigError(
            f"{options.latents} was made with another autoencoder than that of {pipe.folder}",
            f"the sha256 of its {file} begins with {str(made_by)[:12]}",
            "name its weights folder with --weights",
        )
    if record.status == "interrupted":
        outputs.say(f"{path} is unfinished: {'; '.join(record.warnings) or 'the run was stopped'}")
    suffixes = {wanted.ending, ".png", ".json"}
    if wanted.latents == path:  # a record that has no video yet is completed
        suffixes.remove(".json")
    reserving = files.reserving(wanted.folder, wanted.stem, suffixes)
    with reserving as stem, measuring(show=True) as stages:
        video = Video(pipe.decode(latents[None])[0], options.fps or settings["fps"])
        stages.seconds["load"] = pipe.load_seconds
        settings["fps"] = video.fps
        record = dataclasses.replace(record, settings=settings)
        names = dataclasses.replace(wanted, stem=stem)
        record = outputs.save_video(names, video, record)
    return {"videos": [record.as_data()], "seconds": stages.seconds}


def text(result: dict[str, Any]) -> str:
    """Says where the files are and how long each stage took."""
    return f"{outputs.listing(result['videos'][0])}\n\n{table(result['seconds'])}"
