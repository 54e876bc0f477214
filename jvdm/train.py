"""Main path 2: data -> objective -> optimizer -> checkpoint; only composition."""

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jvdm.experiment import Experiment, describe
from jvdm.files import write_text
from jvdm.parallel import TRAINING, mesh_of, processes
from jvdm.record import device, versions
from jvdm.stopping import StopRequest
from jvdm.training import setup
from jvdm.training.checkpoint import Checkpoints, Resume
from jvdm.training.export import WEIGHTS, check_export, export, recipe_of
from jvdm.training.export import text as text
from jvdm.training.progress import Progress
from jvdm.training.showing import write_preview
from jvdm.training.sinks import Heartbeat, open_sinks
from jvdm.training.step import make_step
from jvdm.training.tracing import Tracer


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How a run is carried out; what it computes is the experiment's matter."""

    config: str = "nano"
    """Python file with `config() -> Experiment`, or the name of a shipped one."""
    workdir: Path = Path("work")
    """Folder of the run: checkpoints, metrics, samples, weights."""
    resume: Resume = "auto"
    """Continue from the newest checkpoint: if there is one, never, or else fail."""
    mesh: str = "auto"
    """How devices share a step: fsdp=4,sequence=2; auto splits the batch over all."""
    profile_steps: int = 0
    """Trace this many steps into `workdir/profile`, after the first ten, and show their table."""


def run(options: TrainOptions, experiment: Experiment) -> dict[str, Any]:
    """Carries out `jvdm train`; `experiment` is the resolved `options.config`."""
    return train(experiment, options.workdir, options.resume, options.profile_steps, options.mesh)


def train(
    experiment: Experiment,
    workdir: str | Path,
    resume: Resume = "auto",
    profile_steps: int = 0,
    mesh: Mesh | str = "auto",
) -> dict[str, Any]:
    """Trains `experiment` to its last step and exports the averaged weights.

    Args:
        experiment: The run as a value: killed anywhere and started again, it ends the same.
        workdir: Folder of the run; what it holds of this run is continued.
        resume: What to do about checkpoints in `workdir`.
        profile_steps: Steps to trace into `workdir/profile`; their table is shown.
        mesh: Devices that share each step, or their description (`jvdm.parallel.mesh`).

    Returns:
        Summary: last loss, times and speed, where it started, where the weights are.

    Raises:
        Preempted: After SIGTERM, when the state is saved; `Interrupted` after Ctrl-C.
        NumericsError: After `experiment.max_skipped` non-finite steps in a row.
        CheckpointError: If one is missing, broken or of another run, or cannot be written.
        ConfigError: If the experiment or the mesh does not fit.
    """
    began = time.perf_counter()
    workdir, mesh = Path(workdir).absolute(), mesh_of(mesh, axes=TRAINING)
    heartbeat = Heartbeat(workdir / "heartbeat.json")
    heartbeat.note("prepare", 0)
    about = {"experiment": describe(experiment), "versions": versions() | device()}
    about["export"] = recipe_of(experiment.objective, experiment.package)
    checkpoints = Checkpoints(workdir / "checkpoints", experiment.keep_checkpoints)
    save = functools.partial(checkpoints.save, about=about)
    with StopRequest(heard=processes.announce_stop) as stop, checkpoints:
        stop.state = "while preparing; nothing was unsaved"
        prepare = functools.partial(_prepare, experiment, checkpoints, resume, mesh, stop)
        start = stop.background(lambda: prepare(about["experiment"], profile_steps > 0)).result()
        begin = {"resumed_from": start.position, "prepare_seconds": time.perf_counter() - began}
        if processes.writes():
            write_text(workdir / "experiment.json", json.dumps(about["experiment"], indent=2))
            print("ready at step {} after {:.1f} s".format(*begin.values()), file=sys.stderr)
        progress = Progress(
            open_sinks(workdir, heartbeat, start.position, experiment.num_steps),
            batch_size=experiment.batch_size,
            flops_per_step=start.flops,
            device_kinds=[device.device_kind for device in mesh.devices.flat],
            max_skipped=experiment.max_skipped,
        )
        with stop.later(), progress, Tracer(workdir, profile_steps) as tracer:
            state, data = _loop(experiment, start, progress, tracer, save, stop)
            checkpoints.wait()
        done = int(state.step)
        stop.state = f"at step {done} of {experiment.num_steps}; the state is saved"
        stop.check(processes.anybody(stop.requested))
        heartbeat.note("export", done)
        reached = export(experiment.objective, experiment.package, workdir / WEIGHTS, state.ema)
        heartbeat.note("done", done)
    return {"step": done, **begin, **progress.overall(), **reached}


def _prepare(experiment, checkpoints: Checkpoints, resume, mesh: Mesh, stop, described, traced):
    """Makes side by side what the first step starts with, and compiles it."""
    objective, source = experiment.objective, experiment.source
    transform = setup.transform_of(objective, experiment.optimizer, experiment.num_steps)
    origin = (objective, transform, experiment.seed, mesh)
    shapes = setup.state_shapes(*origin)
    check_export(objective, experiment.package, source, checkpoints.workdir / WEIGHTS, shapes.ema)
    restored = checkpoints.resume(resume, shapes, described)
    position, saved, make = setup.beginning(restored, origin, experiment.start_from)
    placed = setup.placed(source, checkpoints.workdir, objective)
    ring, start = setup.opened(placed, position, saved, mesh)
    step = make_step(objective, source, transform, experiment.batch_size, experiment.ema_decay)
    compiled = functools.partial(setup.compile_step, objective, step, shapes, ring, mesh, traced)
    compiled, state, data = stop.side_by_side(compiled, make, start)
    return setup.Start(position, state, data, *compiled)


def _loop(experiment, start: setup.Start, progress: Progress, tracer: Tracer, save, stop):
    """Steps until the last one or a request to stop; returns state and data, saved."""
    state, data = start.state, start.data
    rhythm = (experiment.sample_every, experiment.checkpoint_every, experiment.log_every)
    progress.restart_clock()
    for step in range(start.position + 1, experiment.num_steps + 1):
        show, keep, log = (every > 0 and step % every == 0 for every in rhythm)
        tracer.before_step(step - start.position, state, start.step.func)
        data = experiment.source.feed(data)
        state, data, metrics = start.step(state, data)
        progress.collect(metrics)
        stopping = processes.stop_reached(stop.requested, step)
        if show:
            with progress.paused(step):
                path = tracer.workdir / "samples" / f"step_{step}.png"
                write_preview(path, experiment.preview, experiment.objective, state.ema, data)
        if stopping or step == experiment.num_steps or keep:
            with progress.paused(step):
                save(step, state, experiment.source.saved(data))
        elif log:
            progress.close_interval(step)
        if stopping:
            break
    return state, data
