"""The routes of `jvdm serve`: JSON in, a job, and its files out."""

import asyncio
import base64
import binascii
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax

from jvdm.errors import ConfigError
from jvdm.reading import parse_json
from jvdm.serving.jobs import Jobs
from jvdm.serving.tasks import Task
from jvdm.serving.web import Refused, answer, body_of, error_handlers
from jvdm.settings import PICTURE, settings_of

READERS = 4
"""Requests whose bodies are in memory at once."""
FILES = {"content": "video", "record": "record", "latents": "latents", "sheet": "sheet"}
TYPES = {"content": "video/mp4", "sheet": "image/png", "latents": "application/octet-stream"}


def app_of(jobs: Jobs, max_body_bytes: int, usage: str) -> Any:
    """Returns the application of Starlette.

    Args:
        jobs: What it takes on.
        max_body_bytes: Of a request.
        usage: What `GET /` says.
    """
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def root(request: Any) -> Any:
        return PlainTextResponse(usage)

    service = Service(jobs, max_body_bytes)
    one = "/v1/videos/{name}"
    routes = [
        Route("/", root, methods=["GET"]),
        Route("/v1/videos", service.create, methods=["POST"]),
        Route(one, service.status, methods=["GET"]),
        Route(one, service.remove, methods=["DELETE"]),
        Route(f"{one}/cancel", service.cancel, methods=["POST"]),
        *(
            Route(f"{one}/{kind}", functools.partial(service.file, kind=kind), methods=["GET"])
            for kind in FILES
        ),
        Route("/health", service.health, methods=["GET"]),
        Route("/metrics", service.metrics, methods=["GET"]),
    ]

    return Starlette(routes=routes, exception_handlers=error_handlers())


class Service:
    """Answers requests.

    Args:
        jobs: What is taken on.
        max_body_bytes: Of a request.
    """

    def __init__(self, jobs: Jobs, max_body_bytes: int) -> None:
        self.jobs, self.max_body_bytes = jobs, max_body_bytes
        self._readers = asyncio.Semaphore(READERS)

    async def create(self, request: Any) -> Any:
        """`POST /v1/videos`: takes on a job."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no page of another origin may send
            fix = "send JSON with the header Content-Type: application/json"
            raise Refused(415, f"the content type is {kind!r:.80}", "JSON is read here", fix)
        async with self._readers:
            body = await body_of(request, self.max_body_bytes)
            client = request.scope["client_key"]
            name = await asyncio.to_thread(self._submit, client, body)
        return answer(self._shown(name), 202, Location=f"/v1/videos/{name}")

    def _submit(self, client: str, body: bytes) -> str:
        try:
            settings = parse_json(body, "the body", "request", fix='send {"prompt": "a red ball"}')
        except ConfigError as error:
            raise Refused(400, error.what, error.why, error.fix) from error
        if not isinstance(settings, dict):
            what = f"the body is a {type(settings).__name__}"
            raise Refused(400, what, "it is an object", 'send {"prompt": "a red ball"}')
        given = [name for name in settings_of(PICTURE) if settings.get(name) is not None]
        pictures = {name: decoded(name, settings.pop(name)) for name in given}
        return self.jobs.submit(client, settings, pictures)

    async def status(self, request: Any) -> Any:
        """`GET /v1/videos/ID`: says how far a job is."""
        return answer(self._shown(request.path_params["name"]))

    async def cancel(self, request: Any) -> Any:
        """`POST /v1/videos/ID/cancel`: ends a job; latents so far are kept."""
        name = request.path_params["name"]
        await asyncio.to_thread(self.jobs.cancel, name)
        return answer(self._shown(name))

    async def remove(self, request: Any) -> Any:
        """`DELETE /v1/videos/ID`: ends a job and removes its files."""
        name = request.path_params["name"]
        await asyncio.to_thread(self.jobs.cancel, name, forget=True)
        return answer({"id": name, "removed": True})

    async def file(self, request: Any, kind: str) -> Any:
        """`GET /v1/videos/ID/content`, `record`, `latents`, `sheet`, each with `?index=0`."""
        task = self.jobs.task(request.path_params["name"])
        index = request.query_params.get("index", "0")
        if not (index.isascii() and index.isdecimal() and len(index) < 5):
            raise Refused(422, f"index is {index!r:.80}", "it counts the videos from 0", "use 0")
        path = getattr(task.outputs(int(index)), FILES[kind])
        if not os.path.isfile(path):
            raise _missing(task, kind, int(index))
        if kind == "record":
            return answer(await asyncio.to_thread(_record, task, path))
        from starlette.responses import FileResponse

        return FileResponse(path, media_type=TYPES[kind], filename=path.name)

    async def health(self, request: Any) -> Any:
        """`GET /health`: whether the worker is there, and takes jobs on."""
        alive = self.jobs.alive
        return answer({"live": not self.jobs.broken, "ready": alive}, 200 if alive else 503)

    async def metrics(self, request: Any) -> Any:
        """`GET /metrics`: numbers in the text format of Prometheus."""
        from starlette.responses import Response

        return Response(metrics(self.jobs), media_type="text/plain; version=0.0.4")

    def _shown(self, name: str) -> dict[str, Any]:
        """Returns what is said of a job, without who asked for it."""
        status = dataclasses.asdict(self.jobs.status(name))
        del status["client"]
        progress = status["row"] / status["rows"] if status["rows"] else 0.0
        return {**status, "progress": progress if status["state"] != "done" else 1.0}


def decoded(name: str, content: Any) -> bytes:
    """Returns the bytes of a file that stands in JSON as base64, perhaps after `data:...,`.

    Raises:
        ConfigError: If it is something else.
    """
    try:
        if not isinstance(content, str):
            raise ValueError(f"it is a {type(content).__name__}")
        head, comma, rest = content.partition(",")
        return base64.b64decode(
            rest if comma and head.startswith("data:") else content, validate=True
        )
    except (binascii.Error, ValueError) as error:
        what = f"{name} is no file in base64"
        raise ConfigError(what, str(error), f'send "{name}": "iVBORw0KGgo..."') from error


def _missing(task: Task, kind: str, index: int) -> Refused:
    status = task.status
    what = f"there is no {kind} of video {index}"
    if status.error is not None:
        return Refused(
            409, what, f"the job {status.state}: {status.error['what']}", status.error["fix"]
        )
    if status.state == "done":
        return Refused(404, what, f"the job made {status.videos}", "use a smaller index")
    return Refused(409, what, f"the job is {status.state}", "ask again when its state is done")


def _record(task: Task, path: Any) -> dict[str, Any]:
    """Returns a record, with names of files instead of where the server keeps them."""
    record = json.loads(path.read_text(encoding="utf-8"))
    for part in ("outputs", "settings"):
        for name, value in record[part].items():
            if isinstance(value, str):
                record[part][name] = value.replace(f"{task.folder}/", "")
    return record


def metrics(jobs: Jobs) -> str:
    """Returns numbers in the text format of Prometheus."""
    counts = jobs.counts()
    lines: list[str] = []

    def show(name: str, kind: str, about: str, values: Mapping[str, float]) -> None:
        lines.append(f"# HELP jvdm_{name} {about}")
        lines.append(f"# TYPE jvdm_{name} {kind}")
        lines.extend(f"jvdm_{name}{label} {value:.9g}" for label, value in values.items())

    def labelled(label: str, values: Mapping[Any, float]) -> dict[str, float]:
        return {f'{{{label}="{key}"}}': value for key, value in values.items()}

    states = {state: counts.get(state, 0) for state in ("queued", "running", "done")}
    states |= {state: counts.get(state, 0) for state in ("failed", "cancelled")}
    show("queue_length", "gauge", "Jobs that wait.", {"": states["queued"]})
    show("jobs", "gauge", "Jobs that are known, by state.", labelled("state", states))
    show("streams", "gauge", "Streams in memory.", {"": counts["streams"]})
    ended = labelled("state", dict(jobs.ended))
    show("ended_total", "counter", "Jobs and streams of this process that ended.", ended)
    calls = labelled("videos", dict(jobs.calls))
    show("calls_total", "counter", "Calls of the pipeline, by the videos of each.", calls)
    seconds = labelled("stage", dict(jobs.seconds))
    show("seconds_total", "counter", "Time of each stage of all jobs.", seconds)
    show("results_bytes", "gauge", "Size of the results that are kept.", {"": jobs.kept_bytes})
    for name, key in (("in_use", "bytes_in_use"), ("limit", "bytes_limit")):
        found = {device.id: device.memory_stats() or {} for device in jax.local_devices()}
        memory = {device: stats[key] for device, stats in found.items() if key in stats}
        about = f"Memory of a device, {name}; a CPU tells none."
        show(f"device_memory_{name}_bytes", "gauge", about, labelled("device", memory))
    return "\n".join(lines) + "\n"
