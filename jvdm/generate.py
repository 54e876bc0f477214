"""Main path 1: prompt -> text -> noise -> sampler x model -> latents -> frames.

Only composition: each line is a stage, and each stage has a file of its own.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from jvdm import outputs
from jvdm.arrays import Latents
from jvdm.files import slug
from jvdm.options import GenerateOptions, Resolved, check_weights, recorded, resolve
from jvdm.outputs import Outputs
from jvdm.pipeline import Job, Pipeline, load
from jvdm.record import Record
from jvdm.stages import measuring, stage, table
from jvdm.video import Video

__all__ = ["GenerateOptions", "run", "text"]


def run(options: GenerateOptions) -> dict[str, Any]:
    """Carries out `jvdm generate`.

    Returns:
        `videos`: the record of each; `seconds`: time of each stage.

    Raises:
        JvdmError: If anything that was asked for cannot be done.
        KeyboardInterrupt: After Ctrl-C, when the latents so far are saved.
    """
    resolved = resolve(options)
    options = resolved.options
    request = options.request()
    first = outputs.reserve(options.output, slug(options.prompt or ""))
    outputs.probe(first, encode=not options.latents_only)
    names = {name: getattr(options, name) for name in ("system", "sampling", "dtype")}
    pipe = load(options.weights, **names)
    check_weights(resolved, pipe.identity)
    job = pipe.prepare(request)
    _say(*resolved.notes, *job.warnings)
    files = _reserve(resolved)

    with measuring(show=True) as stages:
        with outputs.stop_requested() as stop:
            decodes = 0 if options.latents_only else 1
            latents = pipe.sample(job, lambda *_: stop.is_set(), decodes=decodes)
        saved = _save_latents(options, pipe, job, latents, files)
        if stop.is_set():
            _interrupt(saved, files)
        for index, record in saved.items():
            if options.latents_only:
                saved[index] = outputs.save_record(files[index], record, status="latents")
            else:
                frames = pipe.decode(latents[index : index + 1])[0]
                video = Video(frames, job.settings.fps)
                saved[index] = outputs.save_video(files[index], video, record)
        seconds = {"load": pipe.load_seconds, **stages.seconds}
    return {"videos": [record.as_data() for record in saved.values()], "seconds": seconds}


def text(result: Mapping[str, Any]) -> str:
    """Says where the files are and how long each stage took."""
    files = "\n".join(outputs.listing(record) for record in result["videos"])
    return f"{files}\n\n{table(result['seconds'])}"


def _reserve(resolved: Resolved) -> dict[int, Outputs]:
    """Chooses file names."""
    options, files = resolved.options, {}
    for index, seed in enumerate(options.seeds):
        if resolved.only not in (None, index):
            continue
        output = options.output
        if output.suffix == ".mp4" and len(options.seeds) > 1 and resolved.only is None:
            output = output.with_stem(f"{output.stem}_{seed}")
        files[index] = outputs.reserve(output, f"{slug(options.prompt or '')}_{seed}")
    return files


def _save_latents(
    options: GenerateOptions, pipe: Pipeline, job: Job, latents: Latents, files: dict[int, Outputs]
) -> dict[int, Record]:
    """Writes the latents of every video, so that nothing after this can lose them."""
    values, record = np.asarray(latents), pipe.record(job)
    saved = {}
    with stage("save"):
        for index, names in files.items():
            one = dataclasses.replace(record, settings=recorded(options, job, index))
            saved[index] = outputs.save_latents(names, values[index], one)
    return saved


def _interrupt(saved: dict[int, Record], files: dict[int, Outputs]) -> None:
    """Notes what is there after Ctrl-C and passes the interruption on."""
    for index, record in saved.items():
        record = outputs.save_record(files[index], record, status="interrupted")
        _say(f"stopped early; unfinished latents are in {record.outputs['latents']}")
    raise KeyboardInterrupt


def _say(*messages: str) -> None:
    """Prints warnings where they do not mix with the result."""
    for message in messages:
        print(f"jvdm: {message}", file=sys.stderr)
