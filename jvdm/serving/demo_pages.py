"""The demo over HTTP: the page, and what its scripts ask for.

    GET    /api/about                            model, limits, systems
    POST   /api/streams                          settings as JSON, image in base64 -> a stream
    GET    /api/streams/ID?played=SECONDS        how far it is, rows, density
    GET    /api/streams/ID/film?start=BYTE       the film so far, from there on
    POST   /api/streams/ID/prompt                {"prompt": TEXT}, from the next chunk on
    DELETE /api/streams/ID                       ends it
    POST   /api/galleries                        settings and "systems" -> a gallery
    GET    /api/galleries/ID                     how far its pieces are
    GET    /api/galleries/ID/SYSTEM/FILE         video.mp4, frames.png, matrix.png
    DELETE /api/galleries/ID                     ends it

Errors are those of `jvdm serve`. Who knows the name of a stream may steer it. Those who take turns
are keys or addresses, as `Guard` tells them apart; browsers behind one take the turns of it, by the
name that the page gives each (`X-Visitor`).
"""

import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from jvdm.reading import parse_json
from jvdm.serving.app import READERS, decoded
from jvdm.serving.demo import Demo
from jvdm.serving.demo_streams import LiveStream
from jvdm.serving.gallery import FILES, Gallery
from jvdm.serving.web import Guard, Refused, answer, body_of, error_handlers

PART_BYTES = 2**20
"""Bytes of a film in one answer."""
_FRESH = {"Cache-Control": "no-store"}


def app_of(demo: Demo, keys: Sequence[str] = (), names: Sequence[str] = ()) -> Any:
    """Returns the application: the page for everybody, the rest behind a `Guard`.

    Args:
        demo: What is asked.
        keys: One of them has to be given, if there are any.
        names: What the server may be called where there are none.
    """
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route

    from jvdm.serving.controls import routes as of_controls

    pages = Pages(demo)
    stream, gallery = "/streams/{name}", "/galleries/{name}"
    routes = [
        Route("/about", pages.about, methods=["GET"]),
        Route("/streams", pages.start, methods=["POST"]),
        Route(stream, pages.status, methods=["GET"]),
        Route(f"{stream}/film", pages.film, methods=["GET"]),
        Route(f"{stream}/prompt", pages.prompt, methods=["POST"]),
        Route(stream, functools.partial(pages.cancel, kind=LiveStream), methods=["DELETE"]),
        Route("/galleries", pages.compare, methods=["POST"]),
        Route(gallery, pages.gallery, methods=["GET"]),
        Route(f"{gallery}/{{system}}/{{file}}", pages.file, methods=["GET"]),
        Route(gallery, functools.partial(pages.cancel, kind=Gallery), methods=["DELETE"]),
    ]
    inside = Starlette(routes=routes, exception_handlers=error_handlers())
    outside = [Mount("/api", Guard(inside, keys, names)), *of_controls()]
    return Starlette(routes=outside, exception_handlers=error_handlers())


class Pages:
    """Answers requests.

    Args:
        demo: What is asked.
    """

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self._readers = asyncio.Semaphore(READERS)

    async def about(self, request: Any) -> Any:
        """`GET /api/about`: what a page has to know before it asks for anything."""
        return answer(self.demo.about)

    async def start(self, request: Any) -> Any:
        """`POST /api/streams`: begins a stream."""
        settings = await self._settings(request)
        return await self._begun(self.demo.stream, request.scope["client_key"], settings)

    async def compare(self, request: Any) -> Any:
        """`POST /api/galleries`: begins a gallery."""
        settings = await self._settings(request)
        return await self._begun(self.demo.gallery, request.scope["client_key"], settings)

    async def status(self, request: Any) -> Any:
        """`GET /api/streams/ID`: says how far it is, and hears how far it is watched."""
        stream = self._found(LiveStream, request)
        stream.played(_number(request, "played"))
        return answer(stream.as_data(), 200, **_FRESH)

    async def gallery(self, request: Any) -> Any:
        """`GET /api/galleries/ID`: says how far its pieces are."""
        return answer(self._found(Gallery, request).as_data(), 200, **_FRESH)

    async def prompt(self, request: Any) -> Any:
        """`POST /api/streams/ID/prompt`: tells it another prompt."""
        stream = self._found(LiveStream, request)
        settings = await self._settings(request)
        return await self._begun(self.demo.tell, stream, settings.get("prompt"))

    async def cancel(self, request: Any, kind: Any) -> Any:
        """`DELETE`: ends it."""
        found = self._found(kind, request)
        await asyncio.to_thread(found.cancel)
        return answer(found.as_data())

    async def film(self, request: Any) -> Any:
        """`GET /api/streams/ID/film`: the film, or what came after a byte."""
        from starlette.responses import FileResponse, Response

        stream, start = self._found(LiveStream, request), _number(request, "start")
        if start is not None:
            part = await asyncio.to_thread(stream.film, int(start), PART_BYTES)
            return Response(part, headers=_FRESH, media_type="video/mp4")
        if not os.path.isfile(stream.path):
            raise Refused(409, "there is no film yet", "its first chunk is not made", "ask again")
        return FileResponse(stream.path, media_type="video/mp4", headers=_FRESH)

    async def file(self, request: Any) -> Any:
        """`GET /api/galleries/ID/SYSTEM/FILE`: what a system made."""
        from starlette.responses import FileResponse

        place = request.path_params["system"], request.path_params["file"]
        path = self._found(Gallery, request).paths().get(place)
        if path is None:
            what = f"there is no file {'/'.join(place)!r:.80}"
            raise Refused(404, what, "it is not made, or not yet", "wait until its piece is done")
        return FileResponse(path, media_type=FILES[place[1]])

    def _found(self, kind: Any, request: Any) -> Any:
        return self.demo.find(kind, request.path_params["name"])

    async def _settings(self, request: Any) -> dict[str, Any]:
        """Reads the JSON object that a page of this origin sends; its picture becomes bytes."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no page of another origin may send
            fix = "send JSON with the header Content-Type: application/json"
            raise Refused(415, f"the content type is {kind!r:.80}", "JSON is read here", fix)
        async with self._readers:
            body = await body_of(request, self.demo.body_bytes)
            return await asyncio.to_thread(_read, body)

    async def _begun(self, work: Callable[..., Any], *given: Any) -> Any:
        """Returns what is said of what some work began, or told otherwise."""
        made = await asyncio.to_thread(work, *given)
        return answer(made.as_data(), 200, **_FRESH)


def _read(body: bytes) -> dict[str, Any]:
    settings = parse_json(body, "the body", "request", fix='send {"prompt": "a red ball"}')
    if not isinstance(settings, dict):
        what = f"the body is a {type(settings).__name__}"
        raise Refused(400, what, "it is an object", 'send {"prompt": "a red ball"}')
    if settings.get("image") is not None:
        settings["image"] = decoded("image", settings["image"])
    return settings


def _number(request: Any, name: str) -> float | None:
    """Returns a number of the query, 0 or more; None if it is left out."""
    text = request.query_params.get(name)
    try:
        value = None if text is None else float(text)
        if value is None or 0 <= value < 2**40:
            return value
    except ValueError:
        pass
    raise Refused(422, f"{name} is {text!r:.80}", "it is a number, 0 or more", "leave it out")
