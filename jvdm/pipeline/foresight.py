"""Chunks of a stream that are made ahead, in a thread, as if nobody were to say anything more.

While the frames of a chunk are written and lines are waited for, the next chunks come to be on that
guess. Where it was right they are taken, with the bits that they would have had; where something
else is told they are dropped, and the stream goes on from where it was: a state is a value.

Reference: Next-Frame Diffusion, arXiv:2506.01380, speculative sampling.
"""

import collections
import concurrent.futures
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from jvdm.arrays import Latents, PyTree
from jvdm.pipeline import programs, streaming
from jvdm.samplers import Ahead, StreamState, speculate
from jvdm.samplers.speculation import alike

if TYPE_CHECKING:
    from jvdm.pipeline.pipeline import Pipeline


class _Guess(NamedTuple):
    """A chunk that is made, or will be: what it is told, and its work."""

    told: PyTree
    work: "concurrent.futures.Future[Ahead]"


def chunks(pipe: "Pipeline", job: streaming.StreamJob) -> Iterator[streaming.HostFrames]:
    """Yields the frames of a stream; the next chunk is begun before those of one are fetched."""
    system, params = streaming.network(pipe, job)

    def step(state: StreamState, told: PyTree) -> tuple[StreamState, Latents]:
        return programs.stream_on(system, params, told, job.rows, state, mesh=pipe.mesh)

    run, shown, made = streaming.begin(pipe, job, kept=False), None, 0
    while job.num_frames is None or run.frames < job.num_frames:
        before, (run, shown) = shown, streaming.begun(pipe, job, run, step)
        run = run._replace(frames=run.frames + shown[1].shape[1])
        if before is not None:
            yield streaming.fetched(before)
            made += before[1].shape[1]
    if shown is not None:
        yield streaming.fetched(shown)[: None if job.num_frames is None else job.num_frames - made]


class Foresight:
    """The chunks after a stream that nothing was told of yet; `close` it at the end.

    Args:
        pipe: The loaded system.
        job: What is made; it says how many chunks there are ahead at most.

    Attributes:
        taken: Chunks that were made ahead and asked for.
        dropped: Those that were begun in vain.
    """

    def __init__(self, pipe: "Pipeline", job: streaming.StreamJob) -> None:
        self.taken = self.dropped = 0
        self._pipe, self._job = pipe, job
        self._after: StreamState | None = None
        self._guesses: collections.deque[_Guess] = collections.deque()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "foresight")

    def follow(self, run: streaming.Stream) -> None:
        """Begins what may come after a stream whose frames were handed out; waits for nothing."""
        if self._after is not run.state:
            self._drop()
            self._after = run.state
        apart = self._job.clip.system.vae.strides[0] * self._job.rows.block
        while len(self._guesses) < self._job.ahead:
            frame = run.frames + apart * len(self._guesses)
            if self._job.num_frames is not None and frame >= self._job.num_frames:
                break
            told = streaming.told_at(run, frame).conditions
            before = self._guesses[-1].work if self._guesses else None
            work = self._pool.submit(self._make, run.state, before, told)
            self._guesses.append(_Guess(told, work))

    def take(self, run: streaming.Stream, told: PyTree) -> tuple[StreamState, Latents] | None:
        """Returns the next chunk and the state after it, if it was made as it is told now.

        Raises:
            NumericsError: If it has a non-finite value.
        """
        if self._after is not run.state or not self._guesses:
            return None
        if not alike(self._guesses[0].told, told):
            self._drop()
            return None
        ahead = self._guesses.popleft().work.result()
        self.taken, self._after = self.taken + 1, ahead.states[1]
        return ahead.states[1], ahead.chunks[0]

    def as_data(self) -> dict[str, int]:
        """Returns counts of chunks, and of calls of the network that were made for them."""
        solver, rows = self._job.clip.system.sampling.solver, self._job.rows.cycle.num_rows
        calls = rows * solver.evaluations
        counts = {"chunks_ahead": self.taken, "chunks_dropped": self.dropped}
        more = {"calls_ahead": self.taken * calls, "calls_dropped": self.dropped * calls}
        return {**counts, **more}

    def close(self) -> None:
        """Ends the thread after the chunk that it is at."""
        self._drop()
        self._pool.shutdown()

    def _make(
        self, state: StreamState, before: "concurrent.futures.Future[Ahead] | None", told: PyTree
    ) -> Ahead:
        """Makes a chunk after the one before it."""
        state = state if before is None else before.result().states[1]
        system, params = streaming.network(self._pipe, self._job)
        rows, mesh = self._job.rows, self._pipe.mesh

        def step(state: StreamState, told: PyTree) -> tuple[StreamState, Latents]:
            return programs.stream_chunk(system, params, told, rows, state, mesh=mesh)

        return speculate(step, state, told, 1)

    def _drop(self) -> None:
        self.dropped += sum(not guess.work.cancel() for guess in reversed(self._guesses))
        self._guesses.clear()
