"""Checkpoints of a training run: written in the background, read back bit for bit.

A checkpoint holds the training state as a tree of named arrays, and beside it
a JSON item: the experiment, versions, the position of the data source, and the
name, shape and dtype of every array. Random keys are stored as their key data.
"""

import base64
import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jvdm.arrays import PyTree
from jvdm.errors import CheckpointError
from jvdm.files import reserving
from jvdm.parallel import processes
from jvdm.training import inventory
from jvdm.weights.folder import located

Arrays = dict[str, np.ndarray]
Description = dict[str, Any]
"""An experiment as JSON data."""

Resume = Literal["auto", "never", "must"]
"""Whether a run continues from checkpoints: if there are any, never, or else fails."""

FREE_FIELDS = {"num_steps", "max_skipped", "keep_checkpoints", "package", "preview"} | {
    f"{what}_every" for what in ("log", "checkpoint", "sample")
}
"""Fields of an experiment that may differ between a checkpoint and the run that continues it."""
FREE_SETTINGS = {"threads", "workdir", "max_bad", "max_unknown", "base"}
"""Fields of its parts that may: they say how clips are read, not which, or where weights are whose
content the source compares."""

SLOW_SECONDS = 10.0
"""Wait for the checkpoint before the next one, above which the user is told."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".orbax-checkpoint-tmp"
_nest = functools.partial(traverse_util.unflatten_dict, sep="/")


class Restored(NamedTuple):
    """What a checkpoint gives back: steps done, the state, and what the data source kept."""

    step: int
    state: PyTree
    data: bytes


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in one folder; at its end it waits for pending writes.

    Args:
        folder: Where checkpoints lie, one folder per step.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = Path(folder).absolute()
        self.workdir = self._folder.parent
        self._torn = sorted(path.name for path in self._folder.glob(f"*{_TEMPORARY}*"))
        for times in self._folder.glob("*/_CHECKPOINT_METADATA") if processes.writes() else ():
            if not times.read_bytes().startswith(b"{"):  # orbax refuses the whole folder then
                times.unlink()
        processes.barrier(f"looked through {folder}")
        options = _orbax().CheckpointManagerOptions(max_to_keep=keep, create=True)
        with self._writing():
            self._manager = _orbax().CheckpointManager(self._folder, options=options)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Ends pending writes; explains a full disk, whatever was written below `workdir`."""
        with contextlib.suppress(Exception) if error else self._writing():
            self._manager.close()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise self._unwritten(os.strerror(error.errno)) from error

    def wait(self) -> None:
        """Waits until what was saved is on the disk."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Explains what the storage below raises, now or about a write before.

        Of several processes one may end while others write: what XLA says of that is no matter of
        the storage, nor for people to mend, and `processes` tells who was lost.
        """
        try:
            yield
        except Exception as error:  # orbax and tensorstore have many
            # What orbax had not begun to write stays behind, and Python would say so at the end.
            warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
            codes = re.findall(r"os_error_code='(\d+)'", str(error))
            refused = codes or (isinstance(error, OSError) and error.errno)
            if processes.process_count() > 1 and not refused:
                raise
            why = os.strerror(int(codes[-1])) if codes else _first_line(error)
            raise self._unwritten(why) from error

    def _unwritten(self, why: str) -> CheckpointError:
        steps = finished_steps(self._folder)
        fix = f"mend it and start the same command again; it continues at step {max(steps or [0])}"
        return CheckpointError(f"{self.workdir} cannot be written", why, fix)

    def save(self, step: int, state: PyTree, data: bytes, about: Description) -> None:
        """Starts to write `state`; returns when its buffers may be donated.

        Args:
            step: Number of steps done.
            state: Tree of arrays and typed random keys.
            data: What the data source wants to keep.
            about: `experiment` and `versions`, JSON data.
        """
        arrays, keys = inventory.plain(state), inventory.random_keys(state)
        began = time.monotonic()
        self.wait()
        if (waited := time.monotonic() - began) > SLOW_SECONDS and processes.writes():
            what = f"{self.workdir} is slow: training waited {waited:.0f} s for it to be written"
            warnings.warn(f"{what}; use a larger --checkpoint-every or a faster disk", stacklevel=2)
        size, free = sum(x.nbytes for x in arrays.values()), shutil.disk_usage(self._folder).free
        if size > free:
            raise self._unwritten(f"it has {size / 1e6:.1f} MB, the disk has {free / 1e6:.1f} left")
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
        args = _orbax().args
        items = {"state": args.StandardSave(_nest(arrays)), "meta": args.JsonSave(meta)}
        with self._writing():
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
            _pass_over(f"checkpoint {name} was not finished: {self._folder / name}", how)
        for step in reversed(steps):
            broken, aside = self._folder / str(step), self.workdir / "broken_checkpoints"
            try:
                return self._read(step, like, experiment)
            except (CheckpointError, MemoryError):
                raise
            except Exception as error:  # whatever a damaged file makes of the reader
                why = f"{broken}: {_first_line(error)}"
                _pass_over(f"checkpoint {step} cannot be read ({why})", how)
            if processes.writes():
                with reserving(aside, str(step), ("",)) as name:
                    broken.rename(aside / name)
            processes.barrier(f"set aside {broken}")
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
        if step > experiment.get("num_steps", step):
            what = f"{self.workdir} is at step {step} of {experiment['num_steps']}"
            fix = f"use --num-steps {step} or more, or another --workdir"
            raise CheckpointError(what, "it was trained for longer than is asked for", fix)
        _check_same(meta["arrays"], inventory.shapes(like), f"checkpoint {step} holds other arrays")
        arrays = _arrays(self._folder / str(step), meta, inventory.plain(like))
        for name, kind in meta["keys"].items():
            arrays[name] = jax.random.wrap_key_data(arrays[name], impl=kind)
        leaves = [arrays[name] for name in inventory.by_name(like)]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, base64.b64decode(meta["data"]))


def finished_steps(folder: Path) -> list[int]:
    """Returns the steps that have a whole checkpoint in `folder`, in order."""
    found = Path(folder).glob("[0-9]*") if os.path.isdir(folder) else ()
    numbered = [path for path in found if path.name.isdigit()]
    whole = (path for path in numbered if (path / "state").is_dir() and (path / "meta").is_dir())
    return sorted(int(path.name) for path in whole)


def read_averages(folder: Path, step: int | None = None) -> Arrays:
    """Returns the averaged parameters of a checkpoint by name, on the host, and reads no more.

    Args:
        folder: The `checkpoints` folder of a work directory.
        step: Which step; the newest when None.

    Raises:
        CheckpointError: If there is no such checkpoint or it cannot be read.
    """
    arrays, _ = read_checkpoint(folder, step, "ema/")
    return {name.removeprefix("ema/"): array for name, array in arrays.items()}


def read_checkpoint(
    folder: Path, step: int | None = None, part: str = ""
) -> tuple[Arrays, Description]:
    """Returns the arrays by name, on the host, and the JSON item of a checkpoint.

    Args:
        folder: The `checkpoints` folder of a work directory.
        step: Which step; the newest when None.
        part: How the names of the arrays begin that are read; others are left alone.

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
            if name.startswith(part)
        }
        return _arrays(folder / str(step), meta, like), meta
    except Exception as error:  # whatever a damaged file makes of the reader
        what = f"checkpoint {step} in {folder} is broken"
        raise CheckpointError(what, _first_line(error), others) from error


@functools.cache
def _orbax() -> Any:
    """Imports orbax, and silences what it and tensorstore print of errors that they raise too."""
    import orbax.checkpoint

    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        # One for each array that was under way when another one failed.
        late = ("Event loop is closed", "Python is likely shutting down")
        if not any(text in str(unraisable.exc_value) for text in late):
            show(unraisable)

    sys.unraisablehook = show_others
    return orbax.checkpoint


def _first_line(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0][:200]
    return said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}"


def _meta(root: Path) -> Description:
    return _orbax().Checkpointer(_orbax().JsonCheckpointHandler()).restore(root / "meta")


def _arrays(root: Path, meta: Description, like: dict[str, Any]) -> dict[str, Any]:
    """Reads the arrays of a checkpoint: on the host, or where the shardings of `like` say.

    Raises:
        ValueError: If the values are not those that were saved.
    """
    options = _orbax().options.MultiprocessingOptions()
    if processes.process_count() > 1:  # each reads by itself: one that fails keeps nobody waiting
        mine = jax.process_index()
        options = _orbax().options.MultiprocessingOptions(mine, {mine}, f"read{mine}")
    handler = _orbax().PyTreeCheckpointHandler(multiprocessing_options=options)
    places = _orbax().checkpoint_utils.construct_restore_args(_nest(like))
    wanted = _orbax().args.PyTreeRestore(_nest(like), places, partial_restore=True)
    with processes.together():
        reader = _orbax().Checkpointer(handler, multiprocessing_options=options)
        stored = reader.restore(root / "state", args=wanted)
    arrays = inventory.by_name(stored)
    found = inventory.checksums(arrays)
    wrong = [name for name in found if found[name] != meta["checksums"][name]]
    if wrong:
        raise ValueError(f"the values of {', '.join(wrong[:3])} are not those that were saved")
    return arrays


def _pass_over(what: str, how: Resume) -> None:
    if how == "must":
        fix = "use --resume auto to continue from the one before it"
        raise CheckpointError(what, "--resume must wants the newest checkpoint", fix)
    if processes.writes():
        warnings.warn(f"{what}; the one before it is used", stacklevel=3)


def _check_same(old: Description, new: Description, what: str) -> None:
    """Raises `CheckpointError` with the values that differ, by dotted path."""
    old, new = (traverse_util.flatten_dict(side, sep=".") for side in (old, new))
    places = {name.removesuffix(".sha256") for name in new if name.endswith(".sha256")}
    for name in places & old.keys():  # a checkpoint of the time when only paths were kept
        old |= {f"{name}.{key}": value for key, value in located(old.pop(name)).items()}
    free = {f"{name}.path" for name in places}  # the content counts, and where it is known
    free |= {f"{name}.sha256" for name in places if new[f"{name}.sha256"] is None}
    different = [
        f"{name}: {old.get(name, 'absent')} in the checkpoint, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if name.partition(".")[0] not in FREE_FIELDS
        and name.rpartition(".")[2] not in FREE_SETTINGS
        and name not in free
        and old.get(name, "absent") != new.get(name, "absent")
    ]
    if different:
        more = [f"and {len(different) - 10} more"] if len(different) > 10 else []
        fix = "use another --workdir, or the experiment as it was"
        raise CheckpointError(what, "; ".join(different[:10] + more), fix)
