"""Main path 1: prompt -> text -> noise -> sampler x model -> latents -> frames.

Only composition: each line is a stage, and each stage has a file of its own.
"""

import dataclasses
import sys
from typing import Any

import numpy as np

from jvdm import outputs
from jvdm.arrays import Latents
from jvdm.files import slug
from jvdm.options import GenerateOptions, Plan, check_weights, resolve, settings_of
from jvdm.outputs import Outputs
from jvdm.pipeline import Job, Pipeline, load
from jvdm.record import Record
from jvdm.stages import Stages, table
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
    stages = Stages(show=True)
    plan = resolve(options)
    request = plan.options.request()
    files = _reserve(plan)
    pipe = load(plan.options.weights, dtype=plan.options.dtype, solver=plan.options.solver)
    check_weights(plan, pipe.model.identity)
    job = pipe.prepare(request)
    _say(*plan.notes, *job.warnings)

    text = pipe.encode_text(job, stages)
    state = pipe.begin(job, stages)
    pipe.compile(job, text, state, stages, decode_batch=0 if options.latents_only else 1)
    with outputs.stop_requested() as stop:
        latents = pipe.denoise(job, text, state, stages, lambda *_: stop.is_set())
    saved = _save_latents(plan, pipe, job, latents, files, stages)
    if stop.is_set():
        _interrupt(saved, files, stages)
    if options.latents_only:
        for index, record in saved.items():
            saved[index] = outputs.save_record(files[index], record, stages, status="latents")
    else:
        for index, record in saved.items():
            frames = pipe.decode(latents[index : index + 1], stages)[0]
            video = Video(frames, job.settings.fps)
            saved[index] = outputs.save_video(files[index], video, record, stages)
    seconds = {"load": pipe.load_seconds, **stages.seconds}
    return {"videos": [record.as_data() for record in saved.values()], "seconds": seconds}


def text(result: dict[str, Any]) -> str:
    """Says where the files are and how long each stage took."""
    files = "\n".join(outputs.listing(record) for record in result["videos"])
    return f"{files}\n\n{table(result['seconds'])}"


def _reserve(plan: Plan) -> dict[int, Outputs]:
    """Chooses file names and finds out whether they can be written."""
    options, files = plan.options, {}
    for index, seed in enumerate(options.seeds):
        if plan.only not in (None, index):
            continue
        output = options.output
        if output.suffix == ".mp4" and len(options.seeds) > 1 and plan.only is None:
            output = output.with_stem(f"{output.stem}_{seed}")
        files[index] = outputs.reserve(output, f"{slug(options.prompt or '')}_{seed}")
    outputs.probe(next(iter(files.values())), encode=not options.latents_only)
    return files


def _save_latents(
    plan: Plan,
    pipe: Pipeline,
    job: Job,
    latents: Latents,
    files: dict[int, Outputs],
    stages: Stages,
) -> dict[int, Record]:
    """Writes the latents of every video, so that nothing after this can lose them."""
    values, record = np.asarray(latents), pipe.record(job, stages)
    saved = {}
    with stages.stage("save"):
        for index, names in files.items():
            settings = settings_of(plan.options, job, index)
            one = dataclasses.replace(record, settings=settings)
            saved[index] = outputs.save_latents(names, values[index], one)
    return saved


def _interrupt(saved: dict[int, Record], files: dict[int, Outputs], stages: Stages) -> None:
    """Notes what is there after Ctrl-C and passes the interruption on."""
    for index, record in saved.items():
        record = outputs.save_record(files[index], record, stages, status="interrupted")
        _say(f"stopped early; unfinished latents are in {record.outputs['latents']}")
    raise KeyboardInterrupt


def _say(*messages: str) -> None:
    """Prints warnings where they do not mix with the result."""
    for message in messages:
        print(f"jvdm: {message}", file=sys.stderr)
