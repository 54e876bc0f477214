"""Jobs that have their turn: one call of the pipeline, then the files of each."""

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jvdm import outputs
from jvdm.errors import ConfigError
from jvdm.options import GenerateOptions, recorded
from jvdm.pipeline import Job, Pipeline
from jvdm.record import Record
from jvdm.samplers.sampler import shared_rows
from jvdm.serving.tasks import Task
from jvdm.system import OF_A_ROW
from jvdm.video import Video


@dataclasses.dataclass(frozen=True, eq=False)
class Maker:
    """Makes the videos of jobs, in the thread that owns the device.

    Attributes:
        pipe: The loaded system.
        loading: What was loaded, by the names of `jvdm generate`.
        most_sizes: Sizes of runs whose compiled programs are in memory.

    Raises:
        ConfigError: If the system makes more than pictures.
    """

    pipe: Pipeline
    loading: Mapping[str, Any]
    most_sizes: int
    _sizes: set[Any] = dataclasses.field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.pipe.system.vae, Mapping):
            why = "each result is kept as one video"
            raise ConfigError("a system of several modalities", why, "use jvdm.load from Python")

    def make(self, found: Sequence[Task], late: Callable[[], bool]) -> None:
        """Makes the videos of jobs that may share a call; their status says how far it came.

        Latents are saved first. Whoever cancels a job loses its videos, and all of them stop
        after a row when nobody wants one any more.

        Args:
            found: The jobs.
            late: Whether there is no more time.

        Raises:
            JvdmError: As of `Pipeline.sample` and `Pipeline.decode`.
        """
        job = self.together(found)
        self.make_room(job)

        def callback(row: int, _: Any) -> bool:
            for task in found:
                task.update(row=row + 1)
            return all(task.cancelled for task in found) or late()

        latents, start = np.asarray(self.pipe.sample(job, callback, decodes=1)), 0
        for task in found:
            assert task.job is not None
            part = latents[start : start + task.job.batch]
            self._save(task, part, job.batch, late)
            start += task.job.batch

    def make_room(self, job: Job) -> None:
        """Drops all compiled programs before those of one size too many: each fills memory.

        They are kept on disk (`jvdm.cache`), from where they come back without a compiler.
        """
        structure = jax.tree.structure((job.system.only("model", *OF_A_ROW), job.matrix))
        size = (job.shape, shared_rows(job.matrix), structure)
        if size not in self._sizes and len(self._sizes) >= self.most_sizes:
            jax.clear_caches()
            gc.collect()
            self._sizes.clear()
        self._sizes.add(size)

    def together(self, found: Sequence[Task]) -> Job:
        """Returns the run that makes the videos of jobs."""
        jobs = [task.job for task in found if task.job is not None]
        if len(jobs) == 1:
            return jobs[0]
        prompts = tuple(prompt for job in jobs for prompt in job.prompts)
        seeds = tuple(seed for job in jobs for seed in job.seeds)
        many = {"prompt": prompts, "seed": seeds, "num_videos": None}
        return self.pipe.prepare(dataclasses.replace(found[0].request, **many))

    def _save(
        self, task: Task, latents: np.ndarray, together: int, late: Callable[[], bool]
    ) -> None:
        """Saves the latents of a job, then its videos, as long as somebody wants them."""
        assert task.job is not None
        saved = [
            outputs.save_latents(task.outputs(index), values, self._record(task, index, together))
            for index, values in enumerate(latents)
        ]
        for index, record in enumerate(saved):
            if task.status.row < task.status.rows or task.cancelled or late():
                outputs.save_record(task.outputs(index), record)
                continue
            frames = self.pipe.decode(latents[index : index + 1])[0]
            video = Video(frames, task.job.settings.fps)
            outputs.save_video(task.outputs(index), video, record)
            task.update(videos=index + 1)

    def _record(self, task: Task, index: int, together: int) -> Record:
        """Returns the record of a video, of which `jvdm generate --like` makes it again."""
        job, row, rows = task.job, task.status.row, task.status.rows
        assert job is not None
        asked = {"prompt": task.request.prompt, "seed": job.seeds[0], "num_videos": job.batch}
        settings = recorded(GenerateOptions(**asked, **self.loading), job, index)
        record = self.pipe.record(job)
        record = dataclasses.replace(record, settings={**settings, "together": together})
        if row == rows:
            return dataclasses.replace(record, status="latents")
        notes = (*record.warnings, f"the run was stopped after {row} of {rows} steps")
        return dataclasses.replace(record, status="interrupted", warnings=notes)
