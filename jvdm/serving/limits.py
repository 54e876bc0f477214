"""How much a server takes on: what a job may ask for, how many wait, what is kept."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvdm import media
from jvdm.errors import ConfigError
from jvdm.pipeline.request import Request, frames_of
from jvdm.prompts import count
from jvdm.settings import check_numbers, typed
from jvdm.weights import Manifest


class TooMuch(ConfigError):
    """A job that asks for more than this server gives to one."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one server takes on."""

    max_waiting: int = 64
    """Jobs that wait, of all clients together."""
    max_waiting_each: int = 16
    """Jobs of one client that wait."""
    max_streams: int = 2
    """Streams that are in memory at once; others wait."""
    max_batch: int = 8
    """Videos that are made in one call, of jobs that wait together and differ in prompt and seed
    only; 1 makes every job as `jvdm generate` would, to the last bit."""
    max_videos: int = 4
    """Videos of one job."""
    max_frames: int = 512
    """Frames of a video."""
    max_megapixels: float = 256.0
    """Pixels of all frames of a job, in millions."""
    max_steps: int = 200
    """Denoising steps of a job; those that invert a video count too."""
    max_film_megapixels: float = 500.0
    """Pixels of all frames of a film that is sent, in millions; it is decoded in memory."""
    max_prompt: int = 2000
    """Characters of a prompt."""
    max_switches: int = 16
    """Other prompts within a run."""
    max_sizes: int = 32
    """Sizes of runs whose compiled programs are kept in memory; those on disk are not counted."""
    keep_jobs: int = 1000
    """Jobs whose results are kept; the oldest go first."""
    keep_hours: float = 24.0
    """Hours that a result is kept."""
    keep_gigabytes: float = 10.0
    """Size of all results that are kept."""

    def validated(self) -> "Limits":
        """Returns these limits.

        Raises:
            ConfigError: If one is not above 0; it names the option.
        """
        for field in dataclasses.fields(Limits):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                flag = f"--{field.name.replace('_', '-')}"
                raise ConfigError(f"{flag} is {value}", "it must be above 0", "leave it out")
        return self

    def check(self, request: Request, manifest: Manifest) -> Request:
        """Returns a request with numbers of Python; nothing is computed or allocated.

        Args:
            request: What was asked for.
            manifest: Sizes that are meant where it says none.

        Raises:
            ConfigError: If a value cannot be used.
            TooMuch: If it is more than this server gives to one job.
        """
        if request.prompt is None:
            fix = 'give one: "a large red ball rolls to the left"'
            raise ConfigError("there is no prompt", "it says what is to be seen", fix)
        typed("prompt", request.prompt, str)
        if not request.prompt.strip():
            fix = 'give one: "a large red ball rolls to the left"'
            raise ConfigError(f"the prompt is {request.prompt!r:.80}", "it says nothing", fix)
        self._check_texts(request)
        request = check_numbers(request)
        sizes = manifest.defaults
        videos = count(request.prompt, request.num_videos)
        frames = frames_of(request, manifest) or sizes.num_frames
        height, width = request.height or sizes.height, request.width or sizes.width
        self._at_most("num_videos", videos, self.max_videos)
        self._at_most("num_frames", frames, self.max_frames)
        megapixels = videos * frames * abs(height * width) / 1e6
        if megapixels > self.max_megapixels:
            what = f"{videos} x {frames} frames of {height}x{width}: {megapixels:.6g} megapixels"
            why = f"a job of this server has {self.max_megapixels:g} at most"
            raise TooMuch(what, why, "use fewer frames or smaller ones")
        back = 0 if request.invert is None else 1 + request.invert
        steps = (request.num_inference_steps or 1) * (1 + back)
        self._at_most("num_inference_steps", steps, self.max_steps)
        return request

    def check_film(self, name: str, path: Path) -> None:
        """Refuses a film that is long or large; its frames are counted, whatever it says of them.

        Args:
            name: The setting that it is for.
            path: The file.

        Raises:
            ConfigError: If it is no film.
            TooMuch: If it has more pixels than are read here.
        """
        with media.opened(path) as film:
            size = film.stream.width * film.stream.height / 1e6
            most = self.max_film_megapixels / max(size, 1e-6)
            for count, _ in enumerate(film.container.demux(film.stream)):
                if count > most:
                    what = f"{name} has more than {most:.0f} frames of {size:.3g} megapixels"
                    why = f"films of {self.max_film_megapixels:g} megapixels are read here"
                    raise TooMuch(what, why, "cut it, or make it smaller")

    def _check_texts(self, request: Request) -> None:
        """Refuses prompts that are too long or too many, before anything reads them."""
        for field in dataclasses.fields(request):
            value = getattr(request, field.name)
            if isinstance(value, Mapping):
                self._at_most(f"the number of texts in {field.name}", len(value), self.max_switches)
            texts = [*value, *value.values()] if isinstance(value, Mapping) else [value]
            for text in texts:
                if isinstance(text, str):
                    _check_characters(field.name, text)
                    name = f"the number of characters of {field.name}"
                    self._at_most(name, len(text), self.max_prompt)

    def _at_most(self, name: str, value: Any, most: int) -> None:
        if value > most:
            raise TooMuch(f"{name} is {value}", f"{most} is the most here", f"use {most} or less")


def _check_characters(name: str, text: str) -> None:
    """Refuses text that no file and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} holds half of a character", str(error)[:200], "leave it out"
        ) from error
