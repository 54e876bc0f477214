"""Main path 1: prompt -> text -> noise -> sampler x model -> latents -> frames.

Only composition: each line is a stage, and each stage has a file of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jvdm import outputs
from jvdm.arrays import Latents
from jvdm.live import film
from jvdm.options import (
    GenerateOptions,
    check_weights,
    recorded,
    resolve,
    shown_defaults,
)
from jvdm.outputs import Outputs
from jvdm.pipeline import Job, Pipeline, load, streaming
from jvdm.pipeline.session import Session
from jvdm.record import Record, Status
from jvdm.stages import measuring, stage, table
from jvdm.stopping import StopRequest
from jvdm.video import Video

__all__ = ["GenerateOptions", "run", "shown_defaults", "text"]


def run(options: GenerateOptions) -> dict[str, Any]:
    """Carries out `jvdm generate`.

    Returns:
        `videos`: the record of each; `seconds`: time of each stage.

    Raises:
        JvdmError: If anything that was asked for cannot be done.
        Preempted: After SIGTERM, when the latents so far are saved; `Interrupted` after Ctrl-C.
    """
    resolved = resolve(options)
    options = resolved.options
    request = options.request()
    name = options.name
    wanted = outputs.named(options.output, name)
    if options.stream:
        outputs.check_live(wanted)
    outputs.probe(wanted, encode=not options.latents_only)
    pipe = load(**options.arguments)
    check_weights(resolved, pipe.identity)
    if options.stream:
        endless = streaming.prepare_stream(pipe, request, options.then)
        return film(resolved, pipe, endless, lambda: Session.begin(pipe, endless), name=name)
    job = pipe.prepare(request)
    outputs.say(*resolved.notes, *job.warnings)

    seeds = dict(enumerate(options.seeds))
    seeds = seeds if resolved.only is None else {resolved.only: seeds[resolved.only]}
    rows: list[int] = []
    with (
        StopRequest(
            "the latents are saved after this step", "the same command begins again"
        ) as stop,
        outputs.reserved(options.output, name, seeds) as files,
        measuring(show=True) as stages,
    ):
        with stop.later():
            decodes = 0 if options.latents_only else 1
            latents = pipe.sample(
                job, lambda row, _: rows.append(row) or stop.requested, decodes=decodes
            )
        stop.state = f"after {len(rows)} of {job.matrix.num_rows} steps; the latents are saved"
        saved = _save_latents(options, pipe, job, latents, files, len(rows))
        with outputs.finishable(saved):
            for index, record in saved.items():
                if options.latents_only or stop.requested:
                    saved[index] = outputs.save_record(files[index], record)
            stop.check()
            for index, record in () if options.latents_only else saved.items():
                frames = pipe.decode(latents[index : index + 1])[0]
                video = Video(frames, job.settings.fps)
                saved[index] = outputs.save_video(files[index], video, record)
        seconds = {"load": pipe.load_seconds, **stages.seconds}
    return {"videos": [record.as_data() for record in saved.values()], "seconds": seconds}


def text(result: Mapping[str, Any]) -> str:
    """Says where the files are and how long each stage took."""
    files = "\n".join(outputs.listing(record) for record in result["videos"])
    return f"{files}\n\n{table(result['seconds'])}"


def _save_latents(
    options: GenerateOptions,
    pipe: Pipeline,
    job: Job,
    latents: Latents,
    files: Mapping[int, Outputs],
    rows: int,
) -> dict[int, Record]:
    """Writes the latents of every video after `rows`, so that nothing after this can lose them."""
    values, record = np.asarray(latents), pipe.record(job)
    status: Status = "latents"
    if rows < job.matrix.num_rows:
        status = "interrupted"
        note = f"the run was stopped after {rows} of {job.matrix.num_rows} steps"
        record = dataclasses.replace(record, warnings=(*record.warnings, note))
    saved = {}
    with stage("save"):
        for index, names in files.items():
            settings = recorded(options, job, index)
            one = dataclasses.replace(record, settings=settings, status=status)
            saved[index] = outputs.save_latents(names, values[index], one)
    return saved
