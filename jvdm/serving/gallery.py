"""A gallery: several systems on one prompt and seed, one after another, side by side.

Systems are the published methods of `configs/systems` on the weights that are loaded. Each piece
has its video, its frames in a row, the drawing of its timestep matrix, the time of each stage and
the share of attention that was computed.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jvdm import media, outputs
from jvdm.attention import Dense
from jvdm.errors import ConfigError, JvdmError, Preempted
from jvdm.outputs import Outputs
from jvdm.pipeline import Job, Pipeline, Request
from jvdm.pipeline.loading import composed
from jvdm.pricing import parameter_shapes
from jvdm.recipes import SYSTEMS, nearest, shipped
from jvdm.samplers import plot
from jvdm.samplers.sampler import shared_rows
from jvdm.serving.demo_streams import Watched
from jvdm.serving.feed import told
from jvdm.serving.tasks import State, error_data, without
from jvdm.stages import measuring
from jvdm.video import Video

PLAIN = "plain"
"""Name of what is loaded, as it is."""
FILES = {"video.mp4": "video/mp4", "frames.png": "image/png", "matrix.png": "image/png"}
"""Files of a piece, and their kinds."""


class Systems:
    """The published systems on the weights of one pipeline; they share its parameters.

    Args:
        pipe: The loaded system.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.names = (PLAIN, *shipped(SYSTEMS))
        self._pipe = pipe
        self._made = functools.cache(self._make)

    def __getitem__(self, name: str) -> Pipeline:
        """Returns the pipeline of a system.

        Raises:
            ConfigError: If there is none of this name, or it needs other weights.
        """
        if name not in self.names:
            what, why = f"the system {name!r:.80}", "there is none of this name"
            raise ConfigError(what, why, nearest(name[:80], self.names))
        return self._pipe if name == PLAIN else self._made(name)

    def usable(self, request: Request) -> dict[str, str]:
        """Returns the first line of what each system is that can make a video of a request."""
        found = {}
        for name in self.names:
            try:
                self[name].prepare(request)
            except JvdmError:  # it needs a picture, another length or other weights
                continue
            found[name] = _title(name)
        return found

    def _make(self, name: str) -> Pipeline:
        pipe = self._pipe
        system = composed(pipe.manifest, name, {}).with_dtype(pipe.system.model.dtype)
        if parameter_shapes(system) != parameter_shapes(pipe.system):
            why = "its networks have parameters that these weights do not hold"
            raise ConfigError(f"the system {name}", why, "load its own weights with --weights")
        return dataclasses.replace(pipe, system=system)


def _title(name: str) -> str:
    """Returns the first line of the docstring of a system."""
    if name == PLAIN:
        return "What is loaded, as it is."
    import importlib

    said = importlib.import_module(f"{SYSTEMS}.{name}").__doc__ or name
    return said.strip().partition("\n")[0]


@dataclasses.dataclass
class Piece:
    """What one system makes.

    Attributes:
        system: Its name.
        files: Names of its files.
        state: How far it is.
        row: Rows of its timestep matrix that are done.
        of: All of them.
        seconds: Time of each stage.
        density: Share of attention that was computed; None where nothing counts it.
        error: What, why and fix, where it failed.
    """

    system: str
    files: Outputs
    state: State = "queued"
    row: int = 0
    of: int = 0
    seconds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    density: float | None = None
    error: Mapping[str, str] | None = None


class Gallery(Watched):
    """Several systems on one prompt and seed.

    Args:
        systems: What there is.
        names: Those that are compared.
        request: What they make.
        folder: Where their files are.

    Raises:
        ConfigError: If there is no system of a name, or none is asked for.
    """

    def __init__(
        self, systems: Systems, names: Sequence[str], request: Request, folder: Path
    ) -> None:
        super().__init__(folder)
        if not names or len(set(names)) < len(names):
            why = "each is made once, and one or more are"
            raise ConfigError(f"the systems are {', '.join(names) or 'none'}", why, "choose some")
        for name in names:
            _ = systems[name]
        self.systems, self.request = systems, request
        self.pieces = [Piece(name, Outputs(folder, name)) for name in names]

    def steps(self) -> Iterator[Piece]:
        """Makes one piece after another; one that fails does not keep the others."""
        self.state = "running"
        for piece in self.pieces:
            self.check()
            piece.state = "running"
            try:
                yield from self._make(piece)
                piece.state = "done"
            except Preempted:
                raise
            except Exception as error:  # the log has what nobody foresaw
                piece.error = error_data(without(self.folder, told(error)))
                piece.state = "failed"

    def paths(self) -> dict[tuple[str, str], Path]:
        """Returns the files that are made, by system and name."""
        return {
            (piece.system, file): path
            for piece in self.pieces
            if piece.state == "done"
            for file, path in _paths(piece.files).items()
        }

    def as_data(self) -> dict[str, Any]:
        """Returns what the page shows, as JSON data."""
        names = ("system", "row", "of", "seconds", "density", "error")
        return {
            "id": self.id,
            "state": self.state,
            "error": self.error,
            "ahead": self.ahead,
            "pieces": [
                {
                    **{name: getattr(piece, name) for name in names},
                    "state": "cancelled" if self.ended and _waits(piece) else piece.state,
                    "files": f"api/galleries/{self.id}/{piece.system}",
                }
                for piece in self.pieces
            ],
        }

    def _make(self, piece: Piece) -> Iterator[Piece]:
        """Makes a piece row by row."""
        pipe = self.systems[piece.system]
        with measuring() as stages:
            job = pipe.prepare(self.request)
            self.make_room(job)
            piece.of = shared_rows(job.matrix)
            run = pipe.start(job)
            pipe.compile(run, decodes=1)
        piece.seconds.update(stages.seconds)
        yield piece
        while run.row < piece.of:
            self.check()
            with measuring() as stages:
                run = pipe.advance(run, 1)
            piece.seconds.update(stages.seconds)
            piece.row, piece.density = run.row, _density(job, stages.ran.get("attention", {}))
            yield piece
        with measuring() as stages:
            self._save(piece, pipe, job, pipe.decode(run.state.x)[0])
        piece.seconds.update(stages.seconds)

    def _save(self, piece: Piece, pipe: Pipeline, job: Job, frames: Any) -> None:
        """Writes video, frames in a row, record, and the drawing of the matrix."""
        video = Video(frames, job.settings.fps)
        outputs.save_video(piece.files, video, pipe.record(job))
        cell = max(1, min(8, 480 // piece.of))
        media.write_png(_paths(piece.files)["matrix.png"], plot(jax.device_get(job.matrix), cell))


def _density(job: Job, attention: Mapping[str, Any]) -> float | None:
    """Returns the density of a run so far."""
    dense = 1.0 if isinstance(job.system.network.policy, Dense) else None
    return attention.get("density", dense)


def _paths(files: Outputs) -> dict[str, Path]:
    """Returns the files of a piece by their names on the page."""
    matrix = files.folder / f"{files.stem}.matrix.png"
    return {"video.mp4": files.video, "frames.png": files.sheet, "matrix.png": matrix}


def _waits(piece: Piece) -> bool:
    return piece.state in ("queued", "running")
