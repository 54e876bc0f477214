"""A run of several processes: how they find each other, agree, and who writes.

`initialize()` begins it, in every process, before anything is computed. Where nothing says that
there are others it does nothing, and all that is below costs nothing.
"""

import atexit
import contextlib
import datetime
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import PyTree
from jvdm.errors import ConfigError, DistributedError, JvdmError, Preempted
from jvdm.parallel.mesh import batch_sharding
from jvdm.parallel.peers import Peers, Place, call_roll, is_loopback
from jvdm.stopping import StopRequest

TIMEOUT_SECONDS = 1800.0
"""Patience with missing processes: a cold or preempted gang takes longer than JAX's 300 s."""
# What JAX's preemption service looks for (xla/pjrt/distributed/preemption).
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"

_peers: Peers | None = None


@contextlib.contextmanager
def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: float = TIMEOUT_SECONDS,
) -> Iterator[None]:
    """Makes this process one of a run, until the end of the context; call it once and first.

    What is not given is asked of Cloud TPU, SLURM, Open MPI or Kubernetes, as
    `jax.distributed.initialize` finds them. Without any of them, and for one process, nothing
    happens. A process that ends with an error tells the others, and they end too.

    Args:
        coordinator_address: `HOST:PORT` of process 0, where the others reach it.
        num_processes: Processes of the run.
        process_id: Which one this is, from 0.
        timeout_s: How long to wait for the others.

    Raises:
        ConfigError: If too little is given, or the coordinator cannot be reached from all hosts.
        MissingProcesses: If some do not come; their numbers are named.
    """
    place, devices = _find(coordinator_address, num_processes, process_id, timeout_s)
    if place is None or jax.distributed.is_initialized():
        yield
        return
    _join(place, devices, timeout_s)
    try:
        yield
    except BaseException as error:
        _leave(error)
        raise
    _leave(None)


def process_count() -> int:
    """Returns how many processes work on this run; asks no device where there is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def writes() -> bool:
    """Whether this process writes what only one must: logs, records, sheets and weights."""
    return process_count() == 1 or jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here; a name is used once in a run."""
    if _peers is not None:
        _peers.barrier(name)
    elif process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def anybody(flag: bool) -> bool:
    """Whether a flag is set in any process; all must ask."""
    if process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def share() -> slice:
    """Returns which of many things this process does: every n-th, from its number on."""
    alone = process_count() == 1
    return slice(None) if alone else slice(jax.process_index(), None, jax.process_count())


def collect(found: dict[Any, Any], name: str) -> dict[Any, Any]:
    """Returns what all processes have found, by key; all must ask, some long before others.

    Args:
        found: What this process has; arrays are of NumPy.
        name: Of the barrier, where a process waits that SIGTERM can reach: devices that wait for
            those of another process hear nothing, and give up after half a minute on the CPU.
    """
    if process_count() == 1:
        return found
    barrier(name)
    from jax.experimental import multihost_utils

    mine = np.frombuffer(pickle.dumps(found), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(mine.size))
    padded = np.pad(mine, (0, int(sizes.max()) - mine.size))
    everything = multihost_utils.process_allgather(padded)
    parts = [pickle.loads(row[:size]) for row, size in zip(everything, sizes, strict=True)]
    return {key: value for part in parts for key, value in part.items()}


def agreed(value: str, name: str) -> bool:
    """Whether `value` is the same in all processes; all must ask, `name` is that of `collect`."""
    return (
        process_count() == 1 or len(set(collect({jax.process_index(): value}, name).values())) == 1
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Lets what fails inside in one process fail in all; all must enter.

    Raises:
        DistributedError: In those where it went well, if it failed in another one.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it
        failed = error
    if anybody(failed is not None):
        raise failed or DistributedError("another process failed", "", "see its message")


def announce_stop() -> None:
    """Tells the other processes that this one was asked to stop; they hear it as SIGTERM."""
    peers, client = _peers, _client()
    if client is None or (peers is not None and peers.stopping):
        return
    with contextlib.suppress(Exception):  # the service may have ended already
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        client.key_value_set(_NOTICE, now, allow_overwrite=True)
    if peers is not None:
        peers.stop()


def stop_reached(requested: bool, step: int) -> bool:
    """Whether the run stops after `step`: where JAX's preemption service lets all processes meet.

    Args:
        requested: Whether this process was asked to stop; decides where it is alone.
        step: Must be asked for every step, in every process.
    """
    if process_count() == 1:
        return requested
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def fetch(tree: PyTree) -> PyTree:
    """Returns arrays as this process alone can use them, whole; all must ask."""
    if process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def rows_here(mesh: Mesh, size: int) -> tuple[int, ...]:
    """Returns which rows of a batch of `size` the devices of this process hold, in order."""
    places: Any = batch_sharding(mesh).addressable_devices_indices_map((size,))
    return tuple(sorted({row for (rows,) in places.values() for row in range(size)[rows]}))


def join_rows(rows: PyTree, mesh: Mesh, size: int) -> PyTree:
    """Returns the batch of which every process gives its rows, split over the axes of a batch.

    Args:
        rows: NumPy arrays of the rows `rows_here(mesh, size)`, in this order.
        mesh: The devices.
        size: Rows of the whole batch.
    """
    if process_count() == 1:
        return jax.device_put(rows, batch_sharding(mesh))
    place = {row: position for position, row in enumerate(rows_here(mesh, size))}

    def one(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return array[[place[row] for row in range(size)[index[0]]]]

        shape = (size, *array.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh), part)

    return jax.tree.map(one, rows)


def _find(
    address: str | None, count: int | None, process: int | None, timeout_s: float
) -> tuple[Place | None, Sequence[int] | None]:
    """Returns where this process stands, None if it is alone, and the devices that are its own."""
    from jax._src.clusters import ClusterEnv  # the detection of `jax.distributed.initialize`

    given = {"coordinator-address": address, "num-processes": count, "process-id": process}
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        address, count, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            address, count, process, None, None, int(timeout_s)
        )
    except (RuntimeError, ValueError, OSError) as error:  # what a broken environment says
        what = "the other processes of this run cannot be found"
        fix = "give --coordinator-address, --num-processes and --process-id"
        raise DistributedError(what, str(error).partition("\n")[0], fix) from error
    if count == 1:
        return None, None
    found = dict(zip(given, (address, count, process), strict=True))
    lacking = [f"--{name}" for name, value in found.items() if value is None]
    if lacking and any(value is not None for value in given.values()):
        told = ", ".join(f"--{name} {value}" for name, value in given.items() if value is not None)
        why = f"{' and '.join(lacking)} cannot be found out here"
        raise ConfigError(f"{told} alone", why, "give all three")
    if lacking:
        return None, None
    assert address is not None and count is not None and process is not None
    return _checked(Place(address, int(count), int(process))), devices


def _checked(place: Place) -> Place:
    host, _, port = place.address.rpartition(":")
    if not host or not port.isdecimal():
        what = f"--coordinator-address is {place.address!r}"
        raise ConfigError(what, "it is the host and a free port of process 0", "write HOST:PORT")
    if not 0 <= place.process < place.count:
        what = f"--process-id {place.process} of --num-processes {place.count}"
        raise ConfigError(what, "processes are numbered from 0", f"use 0 to {place.count - 1}")
    if _several_hosts() and is_loopback(place.host):
        what = f"the coordinator {place.address} is on loopback, and there are several hosts"
        why = "every other host would look for it on itself"
        raise ConfigError(what, why, "give the name of process 0's host that others reach")
    return place


def _several_hosts() -> bool:
    """Whether the launcher says that processes of this run are on other hosts."""
    said = os.environ.get
    everywhere = int(said("OMPI_COMM_WORLD_SIZE", 1))
    here = int(said("OMPI_COMM_WORLD_LOCAL_SIZE", everywhere))
    return int(said("SLURM_STEP_NUM_NODES", 1)) > 1 or here < everywhere


def _join(place: Place, devices: Sequence[int] | None, timeout_s: float) -> None:
    """Finds the other processes, then lets JAX do so."""
    global _peers
    began = time.perf_counter()
    _peers = call_roll(place, timeout_s)
    # All are there: JAX has nothing to wait for, and nothing to detect.
    jax.distributed.initialize(
        place.address,
        place.count,
        place.process,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
    )
    heard = signal.getsignal(signal.SIGTERM)
    if heard is not None and threading.current_thread() is threading.main_thread():
        # JAX's service has taken SIGTERM from whoever listened, and only tells those who ask it
        # after every step. `announce_stop` tells it.
        signal.signal(signal.SIGTERM, heard)
    if place.process == 0:
        spent, hosts = time.perf_counter() - began, len(set(_peers.hosts))
        devices_said = f"{jax.local_device_count()} of {jax.device_count()} devices here"
        met = f"{place.count} processes on {hosts} hosts met in {spent:.1f} s"
        print(f"{met}; {devices_said}", file=sys.stderr)


def _leave(error: BaseException | None) -> None:
    """Ends the membership: with all others if nothing failed, else tells them what did."""
    global _peers
    peers, _peers = _peers, None
    assert peers is not None
    if error is None:
        peers.leave()
        jax.distributed.shutdown()
        return
    if isinstance(error, Preempted | KeyboardInterrupt):
        # JAX's shutdown may wait for ever for what it began when it heard of the signal.
        StopRequest.at_once = True
        peers.stop()  # the thread that heard the signal may not have come to it
        peers.leave(stopped=True)
        return
    if not isinstance(error, JvdmError):
        time.sleep(1.0)  # it may come of another process's end, which is on its way to us
    code = error.exit_code if isinstance(error, JvdmError) else 1
    peers.leave((f"{type(error).__name__}: {error}").partition("\n")[0], code)
    atexit.register(_end, code)


def _end(code: int) -> None:
    """Ends the process without JAX's shutdown, which would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _client() -> Any:
    """Returns JAX's connection to its service, None in a run of one process."""
    from jax._src import distributed

    return distributed.global_state.client
