"""Checkpoints of a training run: written in the background, read back bit for bit.

A checkpoint holds the training state as a tree of named arrays, and beside it
a JSON item: the experiment, versions, the position of the data source, and the
name, shape and dtype of every array. Random keys are stored as their key data.
"""

import base64
import contextlib
import functools
import logging
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jvdm.arrays import PyTree
from jvdm.errors import CheckpointError
from jvdm.training import inventory

Arrays = dict[str, np.ndarray]
Description = dict[str, Any]
"""An experiment as JSON data."""

Resume = Literal["auto", "never", "must"]
"""Whether a run continues from checkpoints: if there are any, never, or else fails."""

FREE_FIELDS = {"num_steps", "max_skipped", "keep_checkpoints", "package", "preview"} | {
    f"{what}_every" for what in ("log", "checkpoint", "sample")
}
"""Fields of an experiment that may differ between a checkpoint and the run that continues it."""

_TEMPORARY = ".orbax-checkpoint-tmp"
_nest = functools.partial(traverse_util.unflatten_dict, sep="/")
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError)


class Restored(NamedTuple):
    """What a checkpoint gives back: steps done, the state, and what the data source kept."""

    step: int
    state: PyTree
    data: bytes


class Checkpoints(contextlib.ExitStack):
    """The checkpoints in one folder; at its end it waits for pending writes.

    Args:
        folder: Where checkpoints lie, one folder per step.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        import orbax.checkpoint as ocp

        super().__init__()
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp, self._folder = ocp, Path(folder).absolute()
        self.workdir = self._folder.parent
        self._torn = sorted(path.name for path in self._folder.glob(f"*{_TEMPORARY}*"))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = self.enter_context(ocp.CheckpointManager(self._folder, options=options))
        self.wait = self._manager.wait_until_finished

    def save(self, step: int, state: PyTree, data: bytes, about: Description) -> None:
        """Starts to write `state`; returns when its buffers may be donated.

        Args:
            step: Number of steps done.
            state: Tree of arrays and typed random keys.
            data: What the data source wants to keep.
            about: `experiment` and `versions`, JSON data.
        """
        arrays, keys = inventory.plain(state), inventory.random_keys(state)
        meta = {
            **about,
            "data": base64.b64encode(data).decode(),
            "arrays": inventory.shapes(arrays),
            "checksums": inventory.checksums(arrays),
            "keys": {name: str(jax.random.key_impl(key)) for name, key in keys.items()},
        }
        if jax.default_backend() == "cpu":
            # On the CPU a host copy may share the buffer, which the next step overwrites.
            arrays = jax.block_until_ready(jax.tree.map(jnp.copy, arrays))
        args = self._ocp.args
        items = {"state": args.StandardSave(_nest(arrays)), "meta": args.JsonSave(meta)}
        self._manager.save(step, args=args.Composite(**items), force=True)

    def resume(self, how: Resume, like: PyTree, experiment: Description) -> Restored | None:
        """Returns the newest checkpoint that can be read, or None for the beginning.

        Args:
            how: `must` wants the newest to be readable, `never` that there is none.
            like: Tree of shapes with shardings, as `jax.eval_shape` gives it.
            experiment: The experiment that wants to continue.

        Raises:
            CheckpointError: If a checkpoint is of another experiment or another
                tree, if none can be read although there are some, or as `how` says.
        """
        steps = sorted(self._manager.all_steps())
        if how == "never" and steps:
            raise CheckpointError(
                f"{self._folder} holds checkpoints of steps {steps}",
                "--resume never starts from the beginning and would overwrite them",
                "use --resume auto, another --workdir, or delete the folder",
            )
        for name in self._torn if how != "never" else ():
            _pass_over(f"checkpoint {name} was not finished", how)
        for step in reversed(steps):
            try:
                return self._read(step, like, experiment)
            except _UNREADABLE as error:
                _pass_over(f"checkpoint {step} cannot be read ({_first_line(error)})", how)
            target = self.workdir / "broken_checkpoints" / str(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._folder / str(step)).rename(target)
            self._manager.reload()
        if how == "must" or steps:
            found = f"none of the checkpoints of steps {steps} can be read" if steps else "none"
            raise CheckpointError(
                f"no usable checkpoint in {self._folder}: {found}",
                "there is nothing to continue from",
                "start with --resume never in another --workdir, or restore the folder",
            )
        return None

    def _read(self, step: int, like: PyTree, experiment: Description) -> Restored:
        meta = _meta(self._folder / str(step))
        _check_same(meta["experiment"], experiment, f"checkpoint {step} is of another experiment")
        _check_same(meta["arrays"], inventory.shapes(like), f"checkpoint {step} holds other arrays")
        arrays = _arrays(self._folder / str(step), meta, inventory.plain(like))
        for name, kind in meta["keys"].items():
            arrays[name] = jax.random.wrap_key_data(arrays[name], impl=kind)
        leaves = [arrays[name] for name in inventory.by_name(like)]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, base64.b64decode(meta["data"]))


def finished_steps(folder: Path) -> list[int]:
    """Returns the steps that have a whole checkpoint in `folder`, in order."""
    numbered = [path for path in Path(folder).glob("[0-9]*") if path.name.isdigit()]
    whole = (path for path in numbered if (path / "state").is_dir() and (path / "meta").is_dir())
    return sorted(int(path.name) for path in whole)


def read_checkpoint(folder: Path, step: int | None = None) -> tuple[Arrays, Description]:
    """Returns the arrays by name, on the host, and the JSON item of a checkpoint.

    Args:
        folder: The `checkpoints` folder of a work directory.
        step: Which step; the newest when None.

    Raises:
        CheckpointError: If there is no such checkpoint or it cannot be read.
    """
    folder, steps = Path(folder).absolute(), finished_steps(folder)
    if not steps:
        why, fix = "the run stopped before its first one", "start it again with the same --workdir"
        raise CheckpointError(f"{folder} holds no finished checkpoint", why, fix)
    step = steps[-1] if step is None else step
    others = f"choose another with --step; there are {steps}"
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {folder}", fix=others)
    try:
        meta = _meta(folder / str(step))
        like = {
            name: np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)
            for name, (shape, dtype) in meta["arrays"].items()
        }
        return _arrays(folder / str(step), meta, like), meta
    except _UNREADABLE as error:
        what = f"checkpoint {step} in {folder} is broken"
        raise CheckpointError(what, _first_line(error), others) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _meta(root: Path) -> Description:
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(root / "meta")


def _arrays(root: Path, meta: Description, like: dict[str, Any]) -> dict[str, Any]:
    """Reads the arrays of a checkpoint: on the host, or where the shardings of `like` say.

    Raises:
        ValueError: If the values are not those that were saved.
    """
    import orbax.checkpoint as ocp

    arrays = inventory.by_name(ocp.StandardCheckpointer().restore(root / "state", _nest(like)))
    found = inventory.checksums(arrays)
    wrong = [name for name in found if found[name] != meta["checksums"][name]]
    if wrong:
        raise ValueError(f"the values of {', '.join(wrong[:3])} are not those that were saved")
    return arrays


def _pass_over(what: str, how: Resume) -> None:
    if how == "must":
        fix = "use --resume auto to continue from the one before it"
        raise CheckpointError(what, "--resume must wants the newest checkpoint", fix)
    warnings.warn(f"{what}; the one before it is used", stacklevel=3)


def _check_same(old: Description, new: Description, what: str) -> None:
    """Raises `CheckpointError` with the values that differ, by dotted path."""
    old, new = (traverse_util.flatten_dict(side, sep=".") for side in (old, new))
    different = [
        f"{name}: {old.get(name, 'absent')} in the checkpoint, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if name.partition(".")[0] not in FREE_FIELDS
        and old.get(name, "absent") != new.get(name, "absent")
    ]
    if different:
        more = [f"and {len(different) - 10} more"] if len(different) > 10 else []
        fix = "use another --workdir, or the experiment as it was"
        raise CheckpointError(what, "; ".join(different[:10] + more), fix)
