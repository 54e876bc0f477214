"""A loaded model together with what judges it: batches of held-out clips on the device."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Frames, Latents, PyTree, UInt8
from jvdm.errors import ShapeError
from jvdm.evaluation import held_out
from jvdm.evaluation.estimates import Measure
from jvdm.evaluation.held_out import Prompts
from jvdm.evaluation.measure import measure_clips
from jvdm.evaluation.reader import Reader
from jvdm.evaluation.readers import load_reader, measure_reading, read
from jvdm.pipeline import programs
from jvdm.pipeline.pipeline import Pipeline
from jvdm.pipeline.request import Given, Request
from jvdm.world.scene import World

PHYSICS_RATE = 72  # physics steps per second of the world that every model was trained on
NEXT_FRAMES = 8  # frames after the known ones that are compared with the true ones

Bytes = UInt8[Array, "B T h w 3"]  # letters of their own beside those of latents


class KnownFrames(NamedTuple):
    """A task in which some latent frames are given clean.

    Attributes:
        columns: Latent frames that are given.
        known: Pixel frames that they show.
        judged: Pixel frames that are compared with the true ones.
        copies: Known frames; the best still of one of them is the baseline.
    """

    columns: tuple[int, ...]
    known: np.ndarray
    judged: np.ndarray
    copies: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Everything that turns prompt indices into measures; arrays stay on the device.

    Attributes:
        pipeline: The model.
        world: World of the held-out clips, in the model's sizes and frame rate.
        reader: Trained reader; None leaves its measures out.
        reader_params: Its parameters.
        request: Settings of every run.
    """

    pipeline: Pipeline
    world: World
    reader: Reader | None
    reader_params: PyTree
    request: Request = Request()

    def film(self, prompts: Prompts) -> Bytes:
        """Renders the true clips."""
        return programs.to_bytes(held_out.film(prompts.shot, self.world))

    def decode(self, latents: Latents) -> Bytes:
        """Decodes standardised latents; they stay on the device."""
        return programs.decode(*self.pipeline.coder(), latents)[0]

    def generate(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        clean: Latents | None = None,
        columns: tuple[int, ...] = (),
    ) -> Latents:
        """Samples latents; all tasks are one program, told apart by the timestep matrix.

        Args:
            texts: One prompt per clip.
            seeds: One per clip.
            clean: Latents of which `columns` are given.
            columns: Latent frames that are given; none is text to video.
        """
        given = () if clean is None else (Given(clean[:, list(columns)], columns),)
        request = dataclasses.replace(
            self.request, prompt=tuple(texts), seed=tuple(seeds), given=given
        )
        return self.pipeline.sample(self.pipeline.prepare(request), decodes=len(texts))

    def read(self, batches: Sequence[Sequence[str]]) -> None:
        """Encodes the prompts of all batches with one use of the text encoder.

        Where it is dropped after each use, every batch would load it; what it made is kept.
        """
        if self.pipeline.texts.params is None:
            requests = (dataclasses.replace(self.request, prompt=tuple(b), seed=0) for b in batches)
            self.pipeline.states(*(self.pipeline.prepare(request).ids for request in requests))

    def measure(self, frames: Bytes, prompts: Prompts) -> tuple[Mapping[str, Measure], Any]:
        """Measures clips against their captions; also returns reader features."""
        return _read(self.reader, self.world.fps, self.reader_params, frames, prompts)

    def tasks(self) -> dict[str, KnownFrames]:
        """Returns the tasks with known frames that fit into the model's clips."""
        length, vae = self.world.num_frames, self.pipeline.system.vae
        count = vae.latent_frames(length)
        frame = np.arange(length)
        found = {}
        for name, kept in (("first frame", 1), ("four latent frames", 4)):
            first = vae.num_frames(kept)
            if count > kept:
                judged = (frame >= first) & (frame < first + NEXT_FRAMES)
                columns, copies = tuple(range(kept)), np.array([first - 1, first - 1])
                found[name] = KnownFrames(columns, frame < first, judged, copies)
        if count > 2:
            # The last latent shows its four frames only together with those before it.
            ends, middle = np.array([0, length - 1]), frame == length // 2
            found["first and last"] = KnownFrames((0, count - 1), frame == 0, middle, ends)
        return found


def make_judge(pipeline: Pipeline, reader_folder: Path | None, request: Request) -> Judge:
    """Puts a model beside the world and the reader that judge it.

    Args:
        pipeline: The model.
        reader_folder: Weights folder with a reader; None takes the model's, if it has one.
        request: Settings of every run, such as the number of steps.

    Raises:
        ShapeError: If the model's frame rate does not divide the world's physics.
        WeightsError: If `reader_folder` holds no reader.
    """
    defaults = pipeline.manifest.defaults
    substeps = round(PHYSICS_RATE / defaults.fps)
    if substeps * defaults.fps != PHYSICS_RATE:
        why = f"the world takes {PHYSICS_RATE} physics steps per second"
        raise ShapeError(f"the model makes {defaults.fps} frames per second", why)
    size = (defaults.height, defaults.width, defaults.num_frames, defaults.fps)
    world = World(*size, substeps=substeps)
    reader, params = None, None
    if reader_folder is not None or "reader" in pipeline.manifest.components:
        folder = reader_folder or pipeline.folder
        reader, params = load_reader(folder, pipeline.system.model.dtype)
    return Judge(pipeline, world, reader, params, request)


def _float(frames: Bytes) -> Frames:
    return frames.astype(jnp.float32) / 255.0


@functools.partial(jax.jit, static_argnums=0)
def compare(
    measure: Callable[..., dict[str, Measure]], clips: Sequence[Bytes], *where: Array | np.ndarray
) -> dict[str, Measure]:
    """Returns what a measure of frames in 0..1 says of several versions of the same clips."""
    return measure(*map(_float, clips), *where)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(reader, fps, params, frames, prompts):
    clips = _float(frames)
    measures = measure_clips(clips, prompts.facts, prompts.relation, fps)
    if reader is None:
        return measures, None
    reading = read(reader, params, clips)
    return measures | measure_reading(reading, prompts.facts), reading.features
