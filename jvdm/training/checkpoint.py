"""Checkpoints of a training run: written in the background, read back bit for bit.

A checkpoint holds the training state as a tree of named arrays, and beside it
a JSON item: the experiment, versions, the position of the data source, and the
name, shape and dtype of every array. Random keys are stored as their key data.
"""

import base64
import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import PyTree
from jvdm.errors import CheckpointError
from jvdm.training import inventory

Description = dict[str, Any]
"""An experiment as JSON data."""

Resume = Literal["auto", "never", "must"]
"""Whether a run continues from checkpoints: if there are any, never, or else fails."""

FREE_FIELDS = frozenset(
    {
        "num_steps",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "sample_every",
        "max_skipped",
    }
)
"""Fields of an experiment that may differ between a checkpoint and the run that continues it."""

_TEMPORARY = ".orbax-checkpoint-tmp"
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back."""

    step: int
    state: PyTree
    data: bytes


class Checkpoints:
    """The checkpoints in one folder; a context manager that waits for pending writes.

    Args:
        folder: Where checkpoints lie, one folder per step.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        self._folder = Path(folder).absolute()
        self.unfinished = _unfinished(self._folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.wait()
        self._manager.close()

    @property
    def workdir(self) -> Path:
        """The work directory that holds the folder."""
        return self._folder.parent

    def steps(self) -> list[int]:
        """Returns the steps with a committed checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Waits until everything that was saved is committed."""
        self._manager.wait_until_finished()

    def save(self, step: int, state: PyTree, data: bytes, about: Description) -> None:
        """Starts to write `state`; returns when its buffers may be donated.

        Args:
            step: Number of steps done.
            state: Tree of arrays and typed random keys.
            data: What the data source wants to keep.
            about: `experiment` and `versions`, JSON data.
        """
        arrays = inventory.plain_arrays(state)
        meta = {
            **about,
            "data": base64.b64encode(data).decode(),
            "arrays": inventory.shapes(arrays),
            "checksums": inventory.checksums(arrays),
            "keys": inventory.key_kinds(state),
        }
        if jax.default_backend() == "cpu":
            # On the CPU a host copy may share the buffer, which the next step overwrites.
            arrays = jax.block_until_ready(jax.tree.map(jnp.copy, arrays))
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(inventory.nest(arrays)),
            meta=self._ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items, force=True)

    def resume(self, how: Resume, like: PyTree, experiment: Description) -> Restored | None:
        """Returns where a run starts, as `restore` gives it; None is the beginning.

        Raises:
            CheckpointError: As in `restore`; or if there are checkpoints and `how` is `never`.
        """
        if how != "never":
            return self.restore(like, experiment, strict=how == "must")
        if self.steps():
            raise CheckpointError(
                f"{self._folder} holds checkpoints of steps {self.steps()}",
                "--resume never starts from the beginning and would overwrite them",
                "use --resume auto, another --workdir, or delete the folder",
            )
        return None

    def restore(self, like: PyTree, experiment: Description, *, strict: bool) -> Restored | None:
        """Returns the newest checkpoint that can be read, or None if there is none.

        Args:
            like: Tree of shapes with shardings, as `jax.eval_shape` gives it.
            experiment: The experiment that wants to continue.
            strict: Whether there must be a checkpoint and the newest must be readable.

        Raises:
            CheckpointError: If a checkpoint is of another experiment or another
                tree, if none can be read although there are some, or as `strict` says.
        """
        for name in self.unfinished:
            self._reject(f"checkpoint {name} was not finished", strict)
        steps = self.steps()
        for step in reversed(steps):
            try:
                meta = self._read_meta(step)
            except _UNREADABLE as error:
                self._set_aside(step, error, strict)
                continue
            _check_same_experiment(step, meta["experiment"], experiment)
            _check_same_arrays(step, meta["arrays"], like)
            try:
                arrays = self._read_arrays(step, like)
                inventory.check_checksums(meta["checksums"], arrays)
            except _UNREADABLE as error:
                self._set_aside(step, error, strict)
                continue
            for name, kind in meta["keys"].items():
                arrays[name] = jax.random.wrap_key_data(arrays[name], impl=kind)
            leaves = [arrays[name] for name in inventory.by_name(like)]
            state = jax.tree.unflatten(jax.tree.structure(like), leaves)
            return Restored(step, state, base64.b64decode(meta["data"]))
        if strict or steps:
            found = f"none of the checkpoints of steps {steps} can be read" if steps else "none"
            raise CheckpointError(
                f"no usable checkpoint in {self._folder}: {found}",
                "there is nothing to continue from",
                "start with --resume never in another --workdir, or restore the folder",
            )
        return None

    def _read_meta(self, step: int) -> Description:
        items = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
        return self._manager.restore(step, args=items)["meta"]

    def _read_arrays(self, step: int, like: PyTree) -> dict[str, jax.Array]:
        template = inventory.plain_shapes(like)
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(inventory.nest(template))
        )
        return inventory.by_name(self._manager.restore(step, args=items)["state"])

    def _set_aside(self, step: int, error: Exception, strict: bool) -> None:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._reject(f"checkpoint {step} cannot be read ({first_line[:200]})", strict)
        target = self.workdir / "broken_checkpoints" / str(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        (self._folder / str(step)).rename(target)
        self._manager.reload()

    def _reject(self, what: str, strict: bool) -> None:
        if strict:
            fix = "use --resume auto to continue from the one before it"
            raise CheckpointError(what, "--resume must wants the newest checkpoint", fix)
        warnings.warn(f"{what}; the one before it is used", stacklevel=3)


def read_checkpoint(
    folder: Path, step: int | None = None
) -> tuple[dict[str, np.ndarray], Description]:
    """Returns the arrays by name, on the host, and the JSON item of a checkpoint.

    Args:
        folder: The `checkpoints` folder of a work directory.
        step: Which step; the newest when None.

    Raises:
        CheckpointError: If there is no such checkpoint or it cannot be read.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    steps = sorted(int(child.name) for child in folder.glob("*") if child.name.isdigit())
    step = steps[-1] if step is None and steps else step
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {folder}", f"there are {steps}")
    root = folder / str(step)
    meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(root / "meta")
    like = {
        name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        for name, (shape, dtype) in meta["arrays"].items()
    }
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), inventory.nest(like)
    )
    handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    options = ocp.args.PyTreeRestore(item=inventory.nest(like), restore_args=as_numpy)
    try:
        arrays = inventory.by_name(handler.restore(root / "state", args=options))
        inventory.check_checksums(meta["checksums"], arrays)
    except _UNREADABLE as error:
        raise CheckpointError(f"checkpoint {step} in {folder} cannot be read", str(error)) from None
    return arrays, meta


def _unfinished(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(child.name for child in folder.iterdir() if _TEMPORARY in child.name))


def _check_same_experiment(step: int, old: Description, new: Description) -> None:
    old, new = ({k: v for k, v in side.items() if k not in FREE_FIELDS} for side in (old, new))
    different = inventory.differences(inventory.flatten(old), inventory.flatten(new))
    _raise_if_any(different, f"checkpoint {step} is of another experiment")


def _check_same_arrays(step: int, stored: dict[str, Any], like: PyTree) -> None:
    old = {name: f"{dtype}{shape}" for name, (shape, dtype) in stored.items()}
    new = {name: f"{dtype}{shape}" for name, (shape, dtype) in inventory.shapes(like).items()}
    _raise_if_any(inventory.differences(old, new), f"checkpoint {step} holds other arrays")


def _raise_if_any(differences: list[str], what: str) -> None:
    if not differences:
        return
    shown = "; ".join(differences[:10])
    more = f"; and {len(differences) - 10} more" if len(differences) > 10 else ""
    raise CheckpointError(what, shown + more, "use another --workdir, or the experiment as it was")
