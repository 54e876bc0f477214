"""MAIN PATH 3: a model on held-out prompts, measured beside the floors on true clips."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvdm import record
from jvdm.errors import ConfigError
from jvdm.evaluation import report, streams
from jvdm.evaluation.held_out import SETS, Prompts, draw, part_of
from jvdm.evaluation.judge import Judge, compare, make_judge
from jvdm.evaluation.measure import measure_known_frames, measure_reconstruction
from jvdm.files import probe_writable, write_text
from jvdm.options import shown_defaults
from jvdm.parallel import processes
from jvdm.pipeline import Request, load
from jvdm.stages import measuring, stage
from jvdm.training.showing import write_rows

__all__ = ["EvaluateOptions", "run", "shown_defaults", "text"]

SHEET_CLIPS = 12
MAX_PROMPTS = 1_000_000


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measures a model on held-out prompts: readers, fidelity, floors and timings."""

    weights: str | None = None
    """Weights folder, or the name of weights that come with jvdm; default tiny_t2v."""
    reader: Path | None = None
    """Weights folder with the reader that judges; default that of the model."""
    sets: tuple[str, ...] = tuple(SETS)
    """A one object, B two, C all objects and cameras, H unseen pairs, R places told."""
    known_frame_sets: tuple[str, ...] = ("A", "C")
    """Sets on which image to video, continuation and interpolation are measured."""
    num_prompts: int = 256
    """Prompts per set; a multiple of the batch size."""
    batch_size: int = 64
    """Clips that are made at once."""
    num_inference_steps: int | None = None
    """Denoising steps; default that of the model."""
    guidance_scale: float | None = None
    """Weight of the prompt; default that of the model."""
    system: str | None = None
    """Published method: one of `configs/systems`, such as wave, or a file with system(base)."""
    sampling: dict[str, str] = dataclasses.field(default_factory=dict)
    """Rules by name: --sampling.solver heun, --sampling.matrix lag --sampling.matrix.lag 4."""
    streams: tuple[str, ...] = ()
    """Published methods whose streams are measured instead, such as fvdm and fifo, in one table."""
    stream_frames: int = 500
    """Frames of each stream; twice as many as the model's clip has, or more."""
    seed: int = 0
    """Seed of the first clip of each set; the next ones follow."""
    output: Path = Path("out/evaluation")
    """Folder for evaluation.json and contact sheets."""


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluates a model; writes evaluation.json and contact sheets.

    Several processes share the batches; streams are one process's work.

    Raises:
        ConfigError: If an option cannot be used.
        WeightsError: If the weights are missing or broken.
    """
    _check(options)
    probe_writable(options.output)
    if options.streams:
        if processes.process_count() > 1:
            raise ConfigError("--streams in several processes", "one measures them", "start one")
        return _measure_streams(options)
    writes, mine = processes.writes(), processes.share()
    weights, rules = options.weights, options.sampling
    pipe = load(weights, system=options.system, sampling=rules, progress=writes)
    asked = {name: getattr(options, name) for name in ("num_inference_steps", "guidance_scale")}
    judge = make_judge(pipe, options.reader, Request(**asked))
    pipe.prepare(Request(**asked, prompt="", seed=0, num_videos=options.batch_size))
    summaries, seconds = {}, []
    total, size = options.num_prompts * len(options.sets), options.batch_size
    starts = range(0, options.num_prompts, size)[mine]
    drawn = {name: draw(SETS[name], judge.world, options.num_prompts) for name in options.sets}
    with measuring(writes), stage("evaluate", total=total, unit="prompt") as bar:
        judge.read(
            [part_of(prompts, at, size).texts for prompts in drawn.values() for at in starts]
        )
        for name, prompts in drawn.items():
            parts = {}
            for start in starts:
                batch = part_of(prompts, start, size)
                parts[start] = _measure_batch(judge, name, start, batch, options)
                bar.update(size)
            found = processes.collect(parts, f"measured {name}")
            parts = [part for _, part in sorted(found.items())]
            seconds += [part["seconds"] for part in parts]
            summaries[name] = report.summary(SETS[name].title, parts)
    result = {
        "settings": {**dataclasses.asdict(options), "reader": judge.reader is not None},
        "weights": dict(judge.pipeline.identity),
        "device": record.device(),
        "sets": summaries,
        "seconds": {"batch": round(float(np.median(seconds)), 3), "clips": options.batch_size},
    }
    result = json.loads(json.dumps(result, default=str))
    path = options.output / "evaluation.json"
    if writes:
        write_text(path, json.dumps(result, indent=1) + "\n")
    return {**result, "outputs": [str(path), *map(str, sorted(options.output.glob("*.png")))]}


def text(result: dict[str, Any]) -> str:
    """Returns the tables, and where the files are."""
    if "streams" in result:
        return "\n\n".join([streams.text(result["streams"]), *result["outputs"]])
    return "\n\n".join([report.text(result), *result["outputs"]])


def _measure_streams(options: EvaluateOptions) -> dict[str, Any]:
    """Measures streams of one to two prompts beside the clips of the same seeds."""
    prompts = streams.PROMPTS[: min(options.num_prompts, len(streams.PROMPTS))]
    asked = {name: getattr(options, name) for name in ("num_inference_steps", "guidance_scale")}
    base = load(options.weights, sampling=options.sampling)
    clips = [
        base(prompt, seed=options.seed + index, output_type="np", **asked)
        for index, prompt in enumerate(prompts)
    ]
    result: dict[str, Any] = {"settings": dataclasses.asdict(options), "streams": []}
    result |= {"weights": dict(base.identity), "device": record.device()}
    latents = range(1 + base.system.vae.strides[0], len(clips[0]), base.system.vae.strides[0])
    plain = [streams.measure_borders(clip / np.float32(255), latents) for clip in clips]
    result["streams"].append({"system": "clip", **streams.mean_of(plain)})
    path = options.output / "streams.json"
    for name in options.streams:
        pipe = load(options.weights, system=name, sampling=options.sampling)
        rows = [
            streams.measure_stream(pipe, prompt, options.seed + index, options.stream_frames, clip)
            for index, (prompt, clip) in enumerate(zip(prompts, clips, strict=True))
        ]
        result["streams"].append({"system": name, **streams.mean_of(rows)})
        result = json.loads(json.dumps(result, default=str))
        write_text(path, json.dumps(result, indent=1) + "\n")  # a long run may be stopped
    return {**result, "outputs": [str(path)]}


def _check(options: EvaluateOptions) -> None:
    """Refuses options that cannot be used, before anything is loaded."""
    for name in (*options.sets, *options.known_frame_sets):
        if name not in SETS:
            known = "; ".join(f"{letter}: {entry.title}" for letter, entry in SETS.items())
            raise ConfigError(f"there is no prompt set {name!r}", f"sets are {known}")
    size, count = options.batch_size, options.num_prompts
    if size < 1 or count < size or count % size:
        why = "prompts are made in whole batches, so that one program serves all"
        fix = f"use {max(count // max(size, 1), 1) * size} prompts, or another batch size"
        raise ConfigError(f"{count} prompts in batches of {size}", why, fix)
    if count > MAX_PROMPTS:
        what, why = f"{count:,} prompts per set", f"{MAX_PROMPTS:,} tell shares to .1 %"
        raise ConfigError(what, why, "use fewer")


def _measure_batch(
    judge: Judge, name: str, start: int, prompts: Prompts, options: EvaluateOptions
) -> dict[str, Any]:
    """Measures one batch of a set: true clips, reconstructions, samples, known frames."""
    texts = prompts.texts
    seeds = range(options.seed + start, options.seed + start + len(texts))
    truth = judge.film(prompts)
    latents = judge.pipeline.encode(truth)
    coded = jax.block_until_ready(judge.decode(latents))  # or samples would be timed with it
    samples, seconds = _timed_samples(judge, texts, seeds)
    sources = dict(zip(report.SOURCES, (truth, coded, samples), strict=True))
    part: dict[str, Any] = {"known": {}, "seconds": seconds}
    part["measured"] = {key: judge.measure(clips, prompts) for key, clips in sources.items()}
    part["coding"] = compare(measure_reconstruction, (coded, truth))
    tasks = judge.tasks() if name in options.known_frame_sets else {}
    made = {}
    for task, frames in tasks.items():
        made[task] = judge.decode(judge.generate(texts, seeds, latents, frames.columns))
        where = (frames.known, frames.judged, frames.copies)
        known = compare(measure_known_frames, (made[task], truth, coded), *where)
        seen = judge.measure(made[task], prompts)[0]
        part["known"][task] = {**known, **{key: seen[key] for key in ("count", "permanence")}}
    if start == 0:
        _write_sheet(options.output / f"{name}_samples.png", {"": samples}, texts, SHEET_CLIPS)
        for task, clips in {"reconstruction": coded, **made}.items():
            path = options.output / f"{name}_{task.replace(' ', '_')}.png"
            _write_sheet(path, {"true: ": truth, f"{task}: ": clips}, texts, SHEET_CLIPS // 2)
    return jax.device_get(part)


def _timed_samples(judge: Judge, texts: Sequence[str], seeds: range) -> tuple[Any, float]:
    """Makes videos of prompts, and measures the time without that of compilation."""
    started = time.perf_counter()
    with measuring() as stages:
        samples = jax.block_until_ready(judge.decode(judge.generate(texts, seeds)))
    compiling = stages.seconds.get("compile", 0.0)
    return samples, time.perf_counter() - started - compiling


def _write_sheet(path: Path, sources: Mapping[str, Any], texts: Sequence[str], count: int) -> None:
    """Writes the first clips of every source, one below the other, with their captions."""
    clips = np.stack([np.asarray(frames[:count]) for frames in sources.values()], 1)
    labels = [f"{kind}{caption}" for caption in texts[:count] for kind in sources]
    write_rows(path, clips.reshape(-1, *clips.shape[2:]).astype(np.float32) / 255.0, labels)
