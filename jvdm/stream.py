"""`jvdm stream`: a video without an end, steered by lines on standard input (`jvdm.live`).

A session that was saved goes on where it was, in this process or in another: with `--save FILE`
a stream that is killed has lost nothing but the seconds of film that were not written yet.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jvdm import generate, live, outputs
from jvdm.errors import ConfigError
from jvdm.files import probe_writable, slug
from jvdm.options import StreamOptions, check_weights, resolve, shown_defaults
from jvdm.pipeline import load, streaming
from jvdm.pipeline.session import Act, Session, command_of, load_session, read_session
from jvdm.settings import Settings

__all__ = ["StreamOptions", "run", "shown_defaults", "text"]


def run(options: StreamOptions) -> dict[str, Any]:
    """Carries out `jvdm stream`.

    Returns:
        `videos`: the record; `seconds`: time of each stage; `delivery`: when chunks came.

    Raises:
        JvdmError: If anything that was asked for cannot be done.
        Preempted: After SIGTERM, when the film and the session are saved; `Interrupted` after
            Ctrl-C.
    """
    if options.resume is not None:
        options = _of_saved(options, options.resume)
    resolved = resolve(options)
    options = resolved.options
    pipe = load(**options.arguments)
    check_weights(resolved, pipe.identity)
    begun = 0
    if options.resume is not None:
        length = {"num_frames": options.num_frames, "duration": options.duration}
        session = load_session(pipe, options.resume, options.keep, **length)
        job, begin, name = session.job, lambda: session, slug(session.prompt)
        begun = session.frames
    else:
        job = streaming.prepare_stream(pipe, options.request(), options.then, options.keep)
        begin, name = functools.partial(Session.begin, pipe, job), options.name
    names = outputs.named(options.output, name)
    outputs.check_live(names)
    outputs.probe(names)
    if options.save is not None:
        probe_writable(options.save.expanduser().parent)

    def save(session: Session, path: Path | None = options.save) -> None:
        if path is not None:
            session.save(path.expanduser(), options.loading)

    last = None if job.last_begin is None else max(job.last_begin - begun, 0)
    script = live.Script(options.at, job.clip.settings.fps, _typed(), last)
    commands = [command_of(line) for line in script.timed if line.split()[0] == "act"]
    for command in commands:
        if isinstance(command, Act):
            streaming.check_action(job, command.name)
    return live.film(resolved, pipe, job, begin, name=name, script=script, save=save)


def text(result: Mapping[str, Any]) -> str:
    """Says where the film is, how it came and how long each stage took."""
    return f"{live.text(result['delivery'])}\n\n{generate.text(result)}"


def _typed() -> Iterator[str]:
    """Yields the lines of standard input, if there is one."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file
        return iter(())
    return live.lines_of(descriptor)


def _of_saved(options: StreamOptions, path: Path) -> StreamOptions:
    """Returns options of a session that goes on: what it was loaded with, if nothing else is said.

    Raises:
        ConfigError: If an option says what the session says already.
    """
    own = {"num_frames", "duration"}
    for field in dataclasses.fields(Settings):
        if field.name not in own and getattr(options, field.name) not in (None, {}):
            flag = "--" + field.name.replace("_", "-")
            why = "the session has it already, and its prompt can be another"
            fix = 'leave it out; --at 0.1s "prompt a small blue box rests" tells it otherwise'
            raise ConfigError(f"{flag} was given with --resume", why, fix)
    if options.then:
        fix = 'use --at 20s "prompt a small blue box rests"'
        raise ConfigError("--then was given with --resume", "its times are those of a prompt", fix)
    loaded, known = read_session(path)[0].get("loaded", {}), {}
    for name, own in options.loading.items():
        if not own and loaded.get(name):
            known[name] = loaded[name]
    return dataclasses.replace(options, **known)
