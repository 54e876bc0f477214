"""`jvdm demo`: a small web page on which a video streams while it is made.

    jvdm demo                                   # then open http://127.0.0.1:7860
    jvdm demo --weights nano --system wave      # smaller, and as a wave

Type a prompt and watch it; change the prompt while it plays; drop in a picture as its first frame;
see the rows of the timestep matrix and the attention density as they come. The gallery makes the
published systems side by side on one prompt and seed. Several people take turns, chunk by chunk.

It listens on this machine alone. From elsewhere use a tunnel (`ssh -L 7860:localhost:7860 HOST`),
or give `--host` and a key, and open `http://HOST:7860/?key=KEY`.

Its controls are those of Gradio (`pip install "jvdm[demo]"`), which works offline here and tells
nobody anything. The film is no video of Gradio, which runs a program `ffmpeg` for every segment:
the browser plays the fragments of MP4 that jvdm writes anyway (Media Source Extensions).
"""

import contextlib
import dataclasses
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jvdm.attention import POLICIES
from jvdm.errors import ConfigError, JvdmError
from jvdm.options import shown_defaults
from jvdm.outputs import named, probe
from jvdm.pipeline import Pipeline, Request, load
from jvdm.pipeline.streaming import prepare_stream
from jvdm.serving.demo_streams import LiveStream, Watched, as_streamed
from jvdm.serving.gallery import PLAIN, Gallery, Systems
from jvdm.serving.jobs import Jobs, UnknownJob
from jvdm.serving.limits import Limits
from jvdm.serving.serve import check_installed
from jvdm.serving.tasks import check_names, remove, size_bytes, without, write_pictures
from jvdm.serving.web import Ends, WebOptions, listening, run_until_stopped, work_folder
from jvdm.settings import PICTURE, settings_of, with_numbers

__all__ = ["Demo", "DemoOptions", "run", "shown_defaults", "text"]

USUAL_S = 10.0
"""Seconds of a stream that asks for no length."""
EXAMPLE = "a large red ball rolls to the left"
USUAL_SYSTEMS = (PLAIN, "wave", "autoregressive", "window_attention")
"""What is chosen in the gallery at first."""


ENDS = Ends(
    "films and galleries end with what there is of them",
    "with films and galleries as far as they were; the next demo here removes them",
    "while a program was compiled; the next demo here removes what was made",
    "start the same command again: pages that are open have to be loaded anew",
)


@dataclasses.dataclass(frozen=True)
class DemoOptions(WebOptions):
    """What is shown, to whom, and how much of it."""

    port: int = 7860
    """Port that is listened on; 0 takes a free one."""
    keep_jobs: int = 32
    """Streams and galleries that are kept after their end; the oldest go first."""
    workdir: Path = Path("out/demo")
    """Folder of films; those of an earlier demo are removed."""


class Demo:
    """What the pages ask for, of one loaded pipeline; every method may be called in any thread.

    Args:
        pipe: The loaded system.
        folder: Where films are kept.
        limits: What is taken on.
        body_bytes: Of a request; a picture in it is a third larger than its file.
    """

    def __init__(
        self,
        pipe: Pipeline,
        folder: Path,
        limits: Limits | None = None,
        body_bytes: int = 16_000_000,
    ) -> None:
        self.limits, self.body_bytes = (limits or Limits()).validated(), body_bytes
        self.pipe, self.folder, self.systems = pipe, folder.absolute(), Systems(pipe)
        remove(self.folder / "watched")
        (self.folder / "watched").mkdir(parents=True)
        self.jobs = Jobs(pipe, self.folder / "jobs", self.limits)
        self._watched: dict[str, Watched] = {}
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self.about = self._about()

    def stream(self, client: str, asked: Mapping[str, Any]) -> LiveStream:
        """Begins a stream.

        Args:
            client: Whose turn it takes.
            asked: Settings of `jvdm.settings`, and the name of a `system`; of pictures `image`
                alone, the bytes of its file.

        Raises:
            JvdmError: If a value cannot be used, it is too much, or too many wait.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        image, chosen = given.pop("image", None), self.systems[str(given.pop("system", PLAIN))]
        if not {"duration", "num_frames"} & given.keys():
            given["duration"] = min(USUAL_S, self.about["limits"]["seconds"])
        request = self._request(given)
        with self._folder() as folder:
            files = write_pictures(folder, {} if image is None else {"image": image})
            request = dataclasses.replace(request, **files)
            pipe, notes = as_streamed(chosen, request)
            one_picture = self._reading if files else contextlib.nullcontext()
            with self.jobs.when_idle(), one_picture:
                job = prepare_stream(pipe, request, {})
            stream = LiveStream(pipe, job, folder)
            stream.warnings += notes
            self._begin(client, stream)
            return stream

    def tell(self, stream: LiveStream, prompt: Any) -> LiveStream:
        """Tells a stream another prompt, from its next chunk on.

        Raises:
            ConfigError: If it is none, too long, or the stream has ended.
        """
        self.limits.check(Request(prompt=prompt), self.pipe.manifest)
        stream.tell(prompt)
        return stream

    def gallery(self, client: str, asked: Mapping[str, Any]) -> Gallery:
        """Begins a gallery: `systems` of `asked` are names, the rest are settings of all.

        Raises:
            JvdmError: If a value cannot be used, it is too much, or too many wait.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        names = given.pop("systems", None)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            fix = f"choose some of {', '.join(self.systems.names)}"
            raise ConfigError(f"systems is {names!r:.80}", "it is a list of names", fix)
        request = self._request(given)
        with self._folder() as folder:
            gallery = Gallery(self.systems, names, request, folder)
            self._begin(client, gallery)
            return gallery

    def find(self, kind: type[Watched], name: str) -> Any:
        """Returns a stream or a gallery, and notes that somebody watches it.

        Raises:
            UnknownJob: If there is none of this name.
        """
        with self._lock:
            found = self._watched.get(name)
            if not isinstance(found, kind):
                what, why = f"there is no {kind.__name__} {name!r:.80}", "none has this name"
                raise UnknownJob(what, f"{why}, or it is not kept any more", "start another")
            found.asked()
            for other in self._watched.values():
                if other.lost and not other.ended:
                    other.cancel()
            others = list(self._watched.values())
            found.ahead = sum(not other.ended for other in others[: others.index(found)])
            return found

    def close(self) -> None:
        """Ends everything that is made, and frees the device."""
        with self._lock:
            for watched in self._watched.values():
                watched.cancel()
        self.jobs.close()

    def _request(self, given: dict[str, Any]) -> Request:
        check_names(given)
        for name in (*settings_of(PICTURE), "num_videos"):
            if name in given:
                why = "the demo makes one video, from a prompt and at most a first frame"
                raise ConfigError(f"{name} was given", why, "leave it out")
        given.setdefault("seed", secrets.randbelow(1_000_000))
        return self.limits.check(Request(**given), self.pipe.manifest)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Makes the folder of what begins; an error of that does not say where it is."""
        folder = self.folder / "watched" / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        except BaseException as error:
            remove(folder)
            if isinstance(error, JvdmError):
                raise without(folder, error) from error
            raise

    def _begin(self, client: str, watched: Watched) -> None:
        """Puts it into the line of the device; the oldest that has ended goes."""
        watched.make_room, watched.others_wait = self.jobs.make_room, self.jobs.streams_wait
        feed = self.jobs.stream(client, watched.steps())
        with self._lock:
            self._tidy()
            self._watched[watched.id] = watched
        watched.follow(feed)

    def _tidy(self) -> None:
        """Removes the oldest of what has ended, as the limits say."""
        limits = self.limits
        ended = [watched for watched in self._watched.values() if watched.ended]
        sizes = [size_bytes(watched.folder) for watched in ended]
        for place, watched in enumerate(ended):
            many = len(ended) - place > limits.keep_jobs
            large = sum(sizes[place:]) > limits.keep_gigabytes * 1e9
            if many or large or watched.idle_s > 3600 * limits.keep_hours:
                del self._watched[watched.id]
                remove(watched.folder)

    def _about(self) -> dict[str, Any]:
        """Returns what a page has to know before it asks for anything."""
        sizes, limits = self.pipe.manifest.defaults, self.limits
        seconds, picture = limits.max_frames / sizes.fps, self.body_bytes * 3 // 4 - 100_000
        usable = self.systems.usable(Request(prompt=EXAMPLE, seed=0))
        return {
            "model": self.pipe.manifest.family,
            "device": jax.devices()[0].device_kind,
            "width": sizes.width,
            "height": sizes.height,
            "fps": sizes.fps,
            "usual_seconds": min(USUAL_S, seconds),
            "fast": self._fast(),
            "limits": {"prompt": limits.max_prompt, "seconds": seconds, "picture": picture},
            "attention": list(POLICIES),
            "systems": [
                {"name": name, "title": title, "usual": name in USUAL_SYSTEMS}
                for name, title in usable.items()
            ],
        }

    def _fast(self) -> dict[str, int | None]:
        """Returns settings that take less time; None is one that this system does not let set."""
        sampling = self.pipe.system.sampling
        steps = getattr(sampling.levels, "num_steps", None)
        fast = {"num_inference_steps": steps and max(1, steps // 2), "guidance_scale": 1}

        def usable(name: str) -> int | None:
            try:
                with_numbers(sampling, Request(**{name: fast[name]}))
            except ConfigError:
                return None
            return fast[name]

        return {"steps": usable("num_inference_steps"), "guidance": usable("guidance_scale")}


def run(options: DemoOptions) -> dict[str, Any]:
    """Shows the demo until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: If it cannot start.
        WeightsError: If the weights are missing or broken.
        Preempted: After SIGTERM; `Interrupted` after Ctrl-C.
    """
    from jvdm.serving.demo_pages import app_of

    options.validated()
    for name in ("max_batch", "max_videos", "max_film_megapixels", "grace_s"):
        if getattr(options, name) != getattr(DemoOptions, name):
            what = f"--{name.replace('_', '-')} was given"
            raise ConfigError(what, "a demo streams one video from a prompt", "leave it out")
    check_installed("demo", "gradio", "starlette", "uvicorn")
    keys = options.keys
    with (
        listening(options.host, options.port, keys) as listener,
        work_folder(options.workdir) as folder,
    ):
        probe(named(folder, "probe"))
        pipe = load(**options.arguments)
        demo = Demo(pipe, folder, options, int(options.max_body_megabytes * 1e6))

        def said(address: str) -> None:
            end = "/?key=KEY, with an API key for KEY," if keys else ""
            print(f"jvdm: open {address}{end} in a browser; Ctrl-C ends", file=sys.stderr)

        app = app_of(demo, keys, (options.host,))
        run_until_stopped(app, listener, demo.jobs, options.grace_s, said, ENDS)
    return {}


def text(result: Mapping[str, Any]) -> str:
    """Says nothing: a demo ends by a signal."""
    return ""
