"""From clips at an index to batches on the devices: shuffle, read ahead, put, continue.

Every kind of clips goes through the same grain pipeline: rendered ones
(`WorldSource`), stored ones (`TfdsSource`) and the user's own (`VideoFolder`).
grain is imported when a pipeline starts.
"""

import collections
import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import Array, Float, Int, UInt8
from jvdm.errors import CheckpointError, ConfigError
from jvdm.parallel.mesh import parts, replicate
from jvdm.parallel.processes import join_rows, rows_here, writes
from jvdm.world.vocabulary import MAX_TOKENS

_AHEAD = 2  # batches on the devices that no step has used yet


@runtime_checkable
class ClipRecords(Protocol):
    """Open clips as a list; a record has `video` uint8 `[T, H, W, 3]` and `tokens` int32.

    A record is None where a clip cannot be used; the next one stands for it in the batches.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Frames, height and width of every clip."""
        ...

    def digest(self) -> str:
        """Returns a fingerprint of what the clips are, in which order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any] | None: ...


@runtime_checkable
class ClipSource(Protocol):
    """Frozen settings that say where clips are."""

    def open(self, workdir: Path | None = None) -> ClipRecords:
        """Opens the clips; lists of bad ones go to `workdir`."""
        ...


class FrameBatch(NamedTuple):
    """A batch as a training step sees it: frames in 0..1 and captions."""

    video: Float[Array, "B T H W 3"]
    tokens: Int[Array, "B L"]


class HostBatches(Iterator[dict[str, np.ndarray]]):
    """Endless batches `{video, tokens}` on the host; its position can be saved.

    Args:
        records: The clips.
        batch_size: Clips per batch.
        seed: Order of every epoch; None keeps the order of the records.
        threads: Clips that are read at the same time.
        saved: What `saved()` returned; None starts at the beginning.
        rows: Those of a batch that are read here; None reads all.

    Raises:
        CheckpointError: If `saved` belongs to other clips.
    """

    def __init__(
        self,
        records: ClipRecords,
        batch_size: int,
        seed: int | None,
        threads: int,
        saved: bytes | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        import grain

        self._digest = records.digest()
        self._taken = self._position(saved) if saved is not None else 0
        rows = range(batch_size) if rows is None else rows
        clips = grain.MapDataset.source(_Usable(records))
        ordered = clips if seed is None else clips.seed(seed).shuffle()
        mine = _Rows(ordered.repeat(), self._taken, batch_size, rows)
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * len(rows))
        chosen = grain.MapDataset.source(mine).map(_video_and_tokens).to_iter_dataset(reading)
        self._iterator = iter(chosen.batch(len(rows), drop_remainder=True))

    def __next__(self) -> dict[str, np.ndarray]:
        self._taken += 1
        return next(self._iterator)

    def saved(self) -> bytes:
        """Returns the position after the last batch that was taken, for any number of rows."""
        return json.dumps({"batches": self._taken, "clips": self._digest}).encode()

    def _position(self, saved: bytes) -> int:
        content = json.loads(saved or b"{}")
        if content.get("clips") != self._digest:
            raise CheckpointError(
                "the clips are not those that the checkpoint was trained on",
                "files were added, removed or changed, or the settings of the source differ",
                "restore the clips, or start anew in another --workdir",
            )
        if "batches" not in content:
            raise CheckpointError(
                "the checkpoint is of an older jvdm, which noted its place in the clips otherwise",
                "the clips are the same, but which of them come next cannot be read",
                "take its weights: --start-from its work directory, in another --workdir",
            )
        return content["batches"]


class _Usable:
    """Records without those that are None: the next one in the list stands for each.

    So the clip at a place follows from the place alone, for any number of processes.
    """

    def __init__(self, records: ClipRecords) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for place in range(index, index + len(self)):
            record = self._records[place % len(self)]
            if record is not None:
                return record
        raise ConfigError(f"none of {len(self)} clips can be used", fix="look at their files")


class _Rows:
    """Some rows of every batch from the batch `first` on, as one list."""

    def __init__(self, ordered: Any, first: int, batch_size: int, rows: Sequence[int]) -> None:
        self._ordered, self._first = ordered, first
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return (len(self._ordered) // self._batch_size - self._first) * len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(index, len(self._rows))
        return self._ordered[(self._first + batch) * self._batch_size + self._rows[row]]


class Turns:
    """How far the host is ahead of the steps."""

    def __init__(self) -> None:
        self._given: collections.deque[jax.Array] = collections.deque()

    def wait(self, turn: Int[Array, ""]) -> None:
        """Waits for the step before the last one.

        Else the host would fill the devices with batches whose steps are still queued.

        Args:
            turn: Counter that the last step returned.
        """
        self._given.append(jnp.copy(turn))
        if len(self._given) > _AHEAD:
            self._given.popleft().block_until_ready()


class Feeder:
    """The host's end of a training source: what comes next, and how far ahead it is.

    Compared by identity, so that it may be static data of a pytree.
    """

    def __init__(self, batches: HostBatches, mesh: Mesh, size: int) -> None:
        self.batches, self._mesh, self._size = batches, mesh, size
        self._turns = Turns()

    def put(self, turn: Int[Array, ""]) -> tuple[jax.Array, jax.Array]:
        """Puts the next frames and tokens on the devices; `turn` is what the last step returned."""
        self._turns.wait(turn)
        batch = next(self.batches)
        return join_rows((batch["video"], batch["tokens"]), self._mesh, self._size)


@typing.no_type_check
@flax.struct.dataclass
class HostState:
    """The batch of the next step on the devices, and a counter of the steps."""

    video: UInt8[Array, "B T H W 3"]
    tokens: Int[Array, "B L"]
    turn: Int[Array, ""]
    feeder: Feeder = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class HostSource:
    """A training source that reads clips on the host, ahead of the steps.

    Frames travel to the devices as bytes; `draw` turns them into 0..1.
    """

    clips: ClipSource
    batch_size: int
    """The experiment's batch size."""
    seed: int | None = 0
    """Order of every epoch; None keeps the order of the clips."""
    threads: int = 8
    workdir: Path | None = None
    """Where lists of bad clips go; None is the work directory of the run."""

    def in_workdir(self, workdir: Path) -> "HostSource":
        """Returns the source of a run in `workdir`."""
        return dataclasses.replace(self, workdir=self.workdir or workdir)

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> HostState:
        """Opens the clips and goes to where `saved` says."""
        if self.batch_size % parts(mesh):
            raise ConfigError(
                f"a batch of {self.batch_size} clips cannot be split over {parts(mesh)} devices",
                fix=f"use a batch size that is a multiple of {parts(mesh)}",
            )
        records = self.clips.open(self.workdir if writes() else None)
        size, rows = self.batch_size, rows_here(mesh, self.batch_size)
        batches = HostBatches(records, size, self.seed, self.threads, saved, rows)
        video = np.zeros((len(rows), *records.shape, 3), np.uint8)
        tokens = np.zeros((len(rows), MAX_TOKENS), np.int32)
        video, tokens = join_rows((video, tokens), mesh, size)
        turn = replicate(jnp.int32(position), mesh)
        return HostState(video, tokens, turn, Feeder(batches, mesh, size))

    def feed(self, data: HostState) -> HostState:
        """Brings the next batch to the devices."""
        video, tokens = data.feeder.put(data.turn)
        return dataclasses.replace(data, video=video, tokens=tokens)

    def draw(
        self, data: HostState, step: Int[Array, ""], batch_size: int
    ) -> tuple[FrameBatch, HostState]:
        """Returns the batch that `feed` has brought.

        Raises:
            ConfigError: If the experiment has another batch size.
        """
        if batch_size != self.batch_size:
            raise ConfigError(
                f"the experiment's batch size is {batch_size}, the source's {self.batch_size}",
                "the host makes batches before the step sees them",
                "give both the same batch_size in the config",
            )
        video = data.video.astype(jnp.float32) / 255.0
        return FrameBatch(video, data.tokens), dataclasses.replace(data, turn=data.turn + 1)

    def saved(self, data: HostState) -> bytes:
        """Returns the position of the pipeline."""
        return data.feeder.batches.saved()


def _video_and_tokens(record: Any) -> dict[str, np.ndarray]:
    return {"video": record["video"], "tokens": record["tokens"]}
