"""From clips at an index to batches on the devices: shuffle, read ahead, put, continue.

Every kind of clips goes through the same grain pipeline: rendered ones
(`WorldSource`), stored ones (`TfdsSource`) and the user's own (`VideoFolder`).
grain is imported when a pipeline starts.
"""

import collections
import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import Array, Float, Int, UInt8
from jvdm.errors import CheckpointError, ConfigError
from jvdm.parallel.mesh import parts, replicate, split_batch
from jvdm.world.vocabulary import MAX_TOKENS

_AHEAD = 2  # batches on the devices that no step has used yet


@runtime_checkable
class ClipRecords(Protocol):
    """Open clips as a list; a record has `video` uint8 `[T, H, W, 3]` and `tokens` int32.

    A record is None where a clip cannot be used; it is left out of the batches.
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
    ) -> None:
        import grain

        clips = grain.MapDataset.source(records)
        ordered = clips if seed is None else clips.seed(seed).shuffle()
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
        chosen = ordered.repeat().map(_video_and_tokens).to_iter_dataset(reading)
        self._iterator = iter(chosen.batch(batch_size, drop_remainder=True))
        self._digest = records.digest()
        if saved is not None:
            self._continue(saved)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def saved(self) -> bytes:
        """Returns the position after the last batch that was taken."""
        content = {"iterator": self._iterator.get_state(), "clips": self._digest}
        return json.dumps(content).encode()

    def _continue(self, saved: bytes) -> None:
        content = json.loads(saved or b"{}")
        if content.get("clips") != self._digest:
            raise CheckpointError(
                "the clips are not those that the checkpoint was trained on",
                "files were added, removed or changed, or the settings of the source differ",
                "restore the clips, or start anew in another --workdir",
            )
        self._iterator.set_state(content["iterator"])


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

    def __init__(self, batches: HostBatches, mesh: Mesh) -> None:
        self.batches, self._mesh = batches, mesh
        self._turns = Turns()

    def put(self, turn: Int[Array, ""]) -> tuple[jax.Array, jax.Array]:
        """Puts the next frames and tokens on the devices; `turn` is what the last step returned."""
        self._turns.wait(turn)
        batch = next(self.batches)
        return split_batch((batch["video"], batch["tokens"]), self._mesh)


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
        records = self.clips.open(self.workdir)
        batches = HostBatches(records, self.batch_size, self.seed, self.threads, saved)
        video = np.zeros((self.batch_size, *records.shape, 3), np.uint8)
        tokens = np.zeros((self.batch_size, MAX_TOKENS), np.int32)
        video, tokens = split_batch((video, tokens), mesh)
        turn = replicate(jnp.int32(position), mesh)
        return HostState(video, tokens, turn, Feeder(batches, mesh))

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
