"""A stream on its way from the thread that owns the device to the one that reads it."""

import queue
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from jvdm.diagnosis import understood
from jvdm.errors import ConfigError, JvdmError

CHUNKS_AHEAD = 2
"""Chunks of a stream that wait for its reader; the device does other work meanwhile."""
PATIENCE_S = 60.0
"""A stream whose reader has taken nothing for so long is ended."""


class Feed:
    """The chunks of a stream as they are made; one thread iterates over them.

    Args:
        client: Who reads it.
        chunks: Makes the next chunk when it is asked.
        changed: Told when the stream can go on.

    Attributes:
        id: Its name.
        client: Who reads it.
        made: Chunks that were made.
        stopped: Whether its reader wants no more.
        error: What ended it, if it was not its end.
    """

    def __init__(self, client: str, chunks: Iterator[Any], changed: threading.Condition) -> None:
        self.id, self.client, self.made = secrets.token_hex(16), client, 0
        self.stopped, self.error = False, None
        self._source, self._changed = chunks, changed
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._taken = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        """Yields the chunks.

        Raises:
            JvdmError: What ended the stream, if it was not its end.
        """
        try:
            while (chunk := self._ready.get()) is not None:
                with self._changed:
                    self._taken = time.monotonic()
                    self._changed.notify_all()
                yield chunk
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Ends the stream; the device is free after the chunk that it makes."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    @property
    def due(self) -> bool:
        """Whether it wants the device now."""
        return self.stopped or self._forgotten or self._ready.qsize() < CHUNKS_AHEAD

    @property
    def _forgotten(self) -> bool:
        return self.made > 0 and time.monotonic() - self._taken > PATIENCE_S

    def advance(self) -> bool:
        """Makes a chunk, in the thread that owns the device; returns whether there may be more."""
        if self.stopped:
            self.end()
            return False
        try:
            if self._ready.qsize() >= CHUNKS_AHEAD:
                what = f"nobody read the stream for {PATIENCE_S:g} s"
                raise ConfigError(what, "others wait for the device", "start it again")
            chunk = next(self._source)
        except StopIteration:
            self.end()
            return False
        except Exception as error:
            self.end(told(error))
            return False
        if not self.made:
            self._taken = time.monotonic()
        self.made += 1
        self._ready.put(chunk)
        return True

    def end(self, error: JvdmError | None = None) -> None:
        """Tells the reader that nothing more comes, and frees what the stream held."""
        self.error = error
        getattr(self._source, "close", lambda: None)()
        self._source = iter(())
        self._ready.put(None)


def told(error: Exception) -> JvdmError:
    """Returns what a client is told of an error; the log has the rest of what nobody foresaw."""
    known = error if isinstance(error, JvdmError) else understood(error)
    if known is not None:
        return known
    traceback.print_exception(error, file=sys.stderr)
    what = f"the job failed with {type(error).__name__}"
    return JvdmError(what, "this is a fault of the server; its log says more", "report it")
