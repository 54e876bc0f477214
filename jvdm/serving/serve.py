"""`jvdm serve`: videos over HTTP, for several people, of one device.

    jvdm serve --port 8000
    curl localhost:8000/v1/videos -H 'Content-Type: application/json' -d '{"prompt": "a red ball"}'

`POST /v1/videos` takes a prompt and the settings of `jvdm generate` under their names with
underscores (`num_frames`, `guidance_scale`, ...); `image`, `last_image`, `video` and `channel` are
files in base64. It answers 202 with the `id` of a job. Then

    GET    /v1/videos/ID            its state: queued, running, done, failed, cancelled
    GET    /v1/videos/ID/content    the video, as MP4; ?index=1 is the second of several
    GET    /v1/videos/ID/record     how it was made; jvdm generate --like makes it again
    GET    /v1/videos/ID/latents    what it is decoded from, also of a job that was stopped
    POST   /v1/videos/ID/cancel     ends it after the step that runs
    DELETE /v1/videos/ID            the same, and removes its files
    GET    /health  /metrics        for schedulers and for Prometheus; / is this text

Clients take turns: one is whoever has a key, or an address where there is none or one for all. What
a proxy says of addresses is not believed, so behind one give everybody a key. People of one client
share its turns evenly if each sends a name of its own as the header X-Visitor. Jobs of equal shape
and settings that wait together are made in one call: then a video may differ from that of `jvdm
generate` by rounding (--max-batch 1 makes each alone). Every error is `{"error": {"what", "why",
"fix", "code"}}`: 422 for what cannot be made, 429 with Retry-After while too many wait. After
SIGTERM or Ctrl-C the job that runs is finished within --grace-s, or saved as latents; it and all
that wait are made by the next server of the same --workdir. The exit code is 75 then, or 130.
"""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

from jvdm.errors import ConfigError
from jvdm.options import shown_defaults
from jvdm.outputs import named, probe
from jvdm.pipeline import load
from jvdm.serving.app import app_of
from jvdm.serving.jobs import Jobs
from jvdm.serving.web import Ends, Guard, WebOptions, listening, run_until_stopped, work_folder

__all__ = ["ServeOptions", "run", "shown_defaults", "text"]


ENDS = Ends(
    "what runs is finished, or saved as latents",
    "after saving what there was",
    "while a program was compiled; what ran begins again",
    "start the same command again: it goes on with what waits",
)


@dataclasses.dataclass(frozen=True)
class ServeOptions(WebOptions):
    """What is served, to whom, and how much of it."""

    port: int = 8000
    """Port that is listened on; 0 takes a free one."""
    workdir: Path = Path("out/serve")
    """Folder of jobs and results; a server that starts there again goes on with them."""


def run(options: ServeOptions) -> dict[str, Any]:
    """Answers requests until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: If it cannot start.
        WeightsError: If the weights are missing or broken.
        Preempted: After SIGTERM, when nothing can be lost; `Interrupted` after Ctrl-C.
    """
    options.validated()
    check_installed("serve", "starlette", "uvicorn")
    keys = options.keys
    with (
        listening(options.host, options.port, keys) as listener,
        work_folder(options.workdir) as folder,
    ):
        probe(named(folder, "probe"))
        pipe = load(**options.arguments)
        jobs = Jobs(pipe, folder, options, options.loading)
        most = int(options.max_body_megabytes * 1e6)
        app = Guard(app_of(jobs, most, __doc__ or ""), keys, (options.host,))

        def said(address: str) -> None:
            print(f"jvdm: serving {pipe} at {address}; results in {folder}", file=sys.stderr)

        run_until_stopped(app, listener, jobs, options.grace_s, said, ENDS)
    return {}


def check_installed(command: str, *names: str) -> None:
    """Refuses to start where packages of a command are missing.

    Args:
        command: Its name, which is that of the extra which installs them.
        names: Of the packages.

    Raises:
        ConfigError: It says how to install them.
    """
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        what, why = f"{' and '.join(missing)} is not installed", f"jvdm {command} needs it"
        raise ConfigError(what, why, f'pip install "jvdm[{command}]"')


def text(result: dict[str, Any]) -> str:
    """Says nothing: a server ends by a signal."""
    return ""
