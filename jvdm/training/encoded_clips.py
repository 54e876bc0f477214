"""The user's clips, encoded once: latents and states of captions lie beside the run.

The autoencoder and the text encoder of a published folder are on the device before the first step
alone, one after the other. What they made is in `WORKDIR/encoded`, and made again only if clips,
encoders or the number type are others. Which clips a step sees is a function of the seed and the
step alone.
"""

import dataclasses
import hashlib
import json
import typing
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import Array, Float, Int
from jvdm.data.host import ClipRecords, ClipSource, Turns
from jvdm.errors import CheckpointError, ConfigError
from jvdm.models.conditions import TextStates
from jvdm.parallel.mesh import parts, replicate
from jvdm.parallel.processes import agreed, barrier, join_rows, rows_here, writes
from jvdm.pipeline import Pipeline
from jvdm.pipeline.loading import ready
from jvdm.pricing import stored_shapes
from jvdm.stages import measuring, stage
from jvdm.training.low_rank import Base, base_of
from jvdm.vae.latent_space import latent_space
from jvdm.weights.folder import digests
from jvdm.weights.safetensors import load_stored, read_header, save_stored


@dataclasses.dataclass(frozen=True)
class Captions:
    """Takes every caption: the text encoder of the weights reads them later."""

    def encode(self, prompt: str) -> tuple[Int[np.ndarray, " L"], tuple[str, ...]]:
        """Returns no ids, and no unknown words."""
        return np.zeros(0, np.int32), ()


class Encoded:
    """What is in the folder of encoded clips, and which batch comes next.

    Compared by identity, so that it may be static data of a pytree.
    """

    def __init__(self, folder: Path, digest: str, position: int, mesh: Mesh) -> None:
        self.folder, self.digest, self.mesh = folder, digest, mesh
        self.position = position
        self.clips = sorted(folder.glob("clip-*.safetensors"))
        self.turns = Turns()

    def batch(self, size: int, seed: int) -> dict[str, Any]:
        """Returns this process's rows of the next batch: every clip comes once in an epoch."""
        count, rows = len(self.clips), []
        for row in rows_here(self.mesh, size):
            place = self.position * size + row
            epoch, index = divmod(place, count)
            order = np.random.default_rng((seed, epoch)).permutation(count)
            rows.append(self._clip(self.clips[order[index]]))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def text(self, caption: str) -> dict[str, np.ndarray]:
        """Returns the states of a caption and how many count."""
        return load_stored(_text_file(self.folder, caption))

    def _clip(self, path: Path) -> dict[str, np.ndarray]:
        return load_stored(path) | self.text(read_header(path)[1]["caption"])


@typing.no_type_check
@flax.struct.dataclass
class EncodedState:
    """The batch of the next step on the devices, the empty prompt, and a counter of the steps."""

    latents: Float[Array, "B F H W C"]
    text: TextStates
    nothing: TextStates
    turn: Int[Array, ""]
    encoded: Encoded = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class EncodedClips:
    """Source of standardised latents and states of their captions."""

    clips: ClipSource
    """Where the clips are."""
    batch_size: int
    """The experiment's batch size."""
    seed: int = 0
    """Order of every epoch."""
    workdir: Path | None = None
    """Where encoded clips are kept; None is the work directory of the run."""
    base: str = ""
    """Folder of Diffusers whose encoders are used; that of the objective if left out."""
    dtype: str | None = None
    """Number type of the encoders; that of the objective if left out."""

    def in_workdir(self, workdir: Path) -> "EncodedClips":
        """Returns the source of a run in `workdir`."""
        return dataclasses.replace(self, workdir=self.workdir or workdir)

    def encoded_for(self, objective: Any) -> "EncodedClips":
        """Returns the source with the encoders of what is trained."""
        base, dtype = self.base or objective.base, self.dtype or objective.dtype
        return dataclasses.replace(self, base=base, dtype=dtype)

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> EncodedState:
        """Encodes what is not encoded yet, and goes to where the run was.

        Raises:
            ConfigError: If there are fewer usable clips than a batch has, they cannot be split
                over the devices, or are not the same in all processes.
            CheckpointError: If `saved` is of other clips or encoders.
        """
        if self.batch_size % parts(mesh):
            what = f"a batch of {self.batch_size} clips for {parts(mesh)} devices"
            raise ConfigError(what, "it is split evenly", f"use a multiple of {parts(mesh)}")
        assert self.workdir is not None, "`setup.placed` says where"
        base, records = base_of(self.base, self.dtype), self.clips.open(self.workdir)
        said = json.dumps([records.digest(), digests(base.folder), base.system.vae.dtype])
        digest = hashlib.sha256(said.encode()).hexdigest()
        if saved and saved.decode() != digest:
            what = "the clips or the weights are not those that the checkpoint was trained on"
            fix = "restore them, or start anew in another --workdir"
            raise CheckpointError(what, "files were added, removed or changed", fix)
        if not agreed(digest, "clips and encoders"):
            what = "the processes of this run have different clips or weights"
            why = "each host reads its own, and their contents are compared"
            raise ConfigError(what, why, "give all hosts the same --source.clips and base")
        folder = self.workdir / "encoded" / digest[:16]
        with measuring(show=True):
            if writes():
                _encode(base, records, folder)
            barrier(f"encoded {folder}")
        encoded = Encoded(folder, digest, position, mesh)
        if len(encoded.clips) < self.batch_size:
            what = f"{len(encoded.clips)} usable clips for batches of {self.batch_size}"
            raise ConfigError(what, "a batch is part of an epoch", "use a smaller --batch-size")
        empty = {name: jnp.asarray(x[None]) for name, x in encoded.text("").items()}
        nothing = replicate(TextStates(empty["states"], empty["lengths"]), mesh)
        first = self._placed(encoded)
        turn = replicate(jnp.int32(position), mesh)
        return EncodedState(*first, nothing, turn, encoded)

    def _placed(self, encoded: Encoded) -> tuple[jax.Array, TextStates]:
        """Returns the next batch, on the devices."""
        rows = encoded.batch(self.batch_size, self.seed)
        batch = join_rows(rows, encoded.mesh, self.batch_size)
        return batch["latents"], TextStates(batch["states"], batch["lengths"])

    def feed(self, data: EncodedState) -> EncodedState:
        """Brings the next batch to the devices; it waits for the step before the last one."""
        data.encoded.turns.wait(data.turn)
        latents, text = self._placed(data.encoded)
        data.encoded.position += 1
        return dataclasses.replace(data, latents=latents, text=text)

    def draw(
        self, data: EncodedState, step: Int[Array, ""], batch_size: int
    ) -> tuple[dict[str, Any], EncodedState]:
        """Returns the batch that `feed` has brought.

        Raises:
            ConfigError: If the experiment has another batch size.
        """
        if batch_size != self.batch_size:
            what = f"--batch-size is {batch_size}, --source.batch-size {self.batch_size}"
            raise ConfigError(what, "batches are made before a step sees them", "give both alike")
        batch = {"latents": data.latents, "text": data.text, "nothing": data.nothing}
        return batch, dataclasses.replace(data, turn=data.turn + 1)

    def saved(self, data: EncodedState) -> bytes:
        """Returns what the clips and their encoders are; the step says the rest."""
        return data.encoded.digest.encode()


def _encode(base: Base, records: ClipRecords, folder: Path) -> None:
    """Writes latents and states of all clips that have none yet."""
    todo = [index for index in range(len(records)) if not _clip_file(folder, index).is_file()]
    if todo:
        params = _parameters(base, "vae")
        space = {"vae": latent_space(params, base.manifest)}
        pipe = Pipeline(base.system, space, base.manifest, base.folder)
        with stage("encode", total=len(todo), unit="clip") as bar:
            for index in todo:
                record = records[index]
                if record is not None:
                    latents = np.asarray(pipe.encode(record["video"][None])[0])
                    said = {"caption": record["caption"]}
                    save_stored(_clip_file(folder, index), {"latents": latents}, said)
                bar.update()
        del params, space, pipe
    clips = folder.glob("clip-*.safetensors")
    captions = {"", *(read_header(path)[1]["caption"] for path in clips)}
    lacking = sorted(text for text in captions if not _text_file(folder, text).is_file())
    if lacking:
        params = {"text": _parameters(base, "text")}
        read = jax.jit(lambda params, ids: base.system.told(params, ids).text)
        with stage("text", total=len(lacking), unit="caption") as bar:
            for caption in lacking:
                ids, notes = base.system.text.read((caption,))
                if any(notes):
                    print(f"caption {caption[:60]!r}: {'; '.join(map(str, notes))}")
                told = read(params, jnp.asarray(ids))
                arrays = {"states": told.states[0], "lengths": told.lengths[0]}
                found = {name: np.asarray(x) for name, x in arrays.items()}
                save_stored(_text_file(folder, caption), found, {})
                bar.update()


def _parameters(base: Base, name: str) -> Any:
    """Returns the parameters of an encoder, on the device."""
    shapes = stored_shapes(base.system)[name]
    _, tree = base.manifest.parameters(base.folder, name, shapes)
    return ready(tree, getattr(base.system, name))


def _clip_file(folder: Path, index: int) -> Path:
    return folder / f"clip-{index:06d}.safetensors"


def _text_file(folder: Path, caption: str) -> Path:
    return folder / f"text-{hashlib.sha256(caption.encode()).hexdigest()[:24]}.safetensors"
