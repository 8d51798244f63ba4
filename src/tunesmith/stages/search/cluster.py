"""Workers of a search on the machines of a Ray cluster: each is the program that one machine starts too, in a folder that all machines share."""

import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.base import MachineError
from tunesmith.base.artifact import environment
from tunesmith.base.extras import extra
from tunesmith.base.signals import deferred

from ..machine import available_memory
from .study import Study
from .worker import begin, lay_out, look_back

HELD = ".held"
"""Locked by who began the search, for as long as workers shall go on; `ray.cancel` ends who calls it if the task ends just then."""
SAME = ("python", "tunesmith", "torch", "transformers", "tokenizers", "numpy")
"""What has to be alike on all machines, for trials to be compared; of Python the minor version."""
REACHED = 10.0
"""Seconds in which a cluster has to answer."""
LOOK = 0.5
"""Seconds between looks at whether a worker has ended, or shall end."""
PATIENCE = 60.0
"""Seconds that workers have to save what they are at, once the search is to end; they do so without being waited for too."""


@dataclass(frozen=True)
class Room:
    """What each worker gets of its machine."""

    cores: int
    gpus: int


def room(machines: Sequence[dict[str, float]], workers: int) -> Room:
    """The most cores, and GPUs if there are any, that each of some workers can have at the same time.

    Args:
        machines: `CPU` and `GPU` of each, as Ray names them.
        workers: how many there shall be.

    Raises:
        MachineError: there are not as many cores, or GPUs.
    """
    found = []
    for name in ("CPU", "GPU"):
        counts = [int(machine.get(name, 0)) for machine in machines]
        each = next(
            (most for most in range(max(counts, default=0), 0, -1) if sum(n // most for n in counts) >= workers), 0
        )
        if not each and (name == "CPU" or any(counts)):
            raise MachineError(
                f"search: {workers} workers need as many of the cluster's {name}s, of which there are {sum(counts)}"
            )
        found.append(each)
    cores, gpus = found
    return Room(cores, min(gpus, 1))  # a training takes one GPU


def work_on_cluster(study: Study, workers: int) -> None:
    """Work at a study by workers on the Ray cluster that this machine belongs to, or that RAY_ADDRESS names; what one that dies leaves, the others take over.

    Raises:
        Interrupted: a signal arrived; all save what they are at.
        MachineError: there is no cluster, it is too small, or a machine of it has another folder, locks or versions; or workers died, and something is left to do.
    """
    ray = extra("ray", "ray", "search on a cluster")
    with joined(ray), deferred() as stop:  # Ray's own calls do not bear what a signal raises
        lay_out(study)
        given = room([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        options = {"num_cpus": given.cores, "num_gpus": given.gpus, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        task = ray.remote(**options)(work_here)
        started = []
        try:
            with (study.folder / HELD).open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                started += [
                    task.remote(str(study.folder.resolve()), given, workers, environment()) for _ in range(workers)
                ]
                while ray.wait(started, num_returns=workers, timeout=LOOK)[1]:
                    stop.check()
        finally:
            ray.wait(started, num_returns=len(started), timeout=PATIENCE)
        ended = [_end(ray, each) for each in started]
    look_back(study, [why for why in ended if why])


@contextmanager
def joined(ray: Any) -> Iterator[None]:
    """As a part of the cluster; whoever was one before stays one.

    Raises:
        MachineError: there is none.
    """
    before, address = ray.is_initialized(), os.environ.get("RAY_ADDRESS", "auto")
    ours = signal.getsignal(signal.SIGTERM)
    try:
        if not before:
            _answers(address)
            ray.init(address=address, configure_logging=False)
            if signal.getsignal(signal.SIGTERM) is not ours:
                signal.signal(signal.SIGTERM, ours)  # Ray puts one in its place that ends the process
    except (OSError, ValueError) as error:
        raise MachineError(
            f"search: no Ray cluster was found; begin one by `ray start --head`, or set RAY_ADDRESS ({' '.join(str(error).split())})"
        ) from None
    try:
        yield
    finally:
        if not before:
            ray.shutdown()


def _answers(address: str) -> None:
    """See at once that nobody is there, where Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "//" not in address:
        socket.create_connection((host, int(port)), timeout=REACHED).close()


def _end(ray: Any, task: Any) -> str:
    """Why a worker failed; empty if it did not."""
    try:
        return str(ray.get(task))
    except ray.exceptions.RayError as error:  # its process or its machine is gone
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def work_here(folder: str, given: Room, workers: int, wanted: dict[str, Any]) -> str:
    """On some machine of the cluster: a worker, and why it failed; empty if it did not."""
    if reason := unfit(Path(folder), wanted):
        return reason
    here = 1 if given.gpus else min(workers, max(1, (os.cpu_count() or 1) // given.cores))
    process = begin(Path(folder), available_memory() // here, given.cores)
    try:
        while process.poll() is None and _held(Path(folder)):
            time.sleep(LOOK)
        if process.poll() is None:
            return "the search ended before it"
        return str(process.returncode or "")
    finally:
        process.terminate()
        process.wait()


def unfit(folder: Path, wanted: dict[str, Any]) -> str:
    """Why trials cannot be trained here; empty if they can.

    Args:
        folder: the search's.
        wanted: the environment of who began it.
    """
    mine = environment()
    where = f"machine {os.uname().nodename}"
    for name in SAME:
        ours, theirs = (str(each[name]) for each in (mine, wanted))
        if name == "python":
            ours, theirs = (each.rsplit(".", 1)[0] for each in (ours, theirs))
        if ours != theirs:
            return f"{where}: {name} is {ours}, and {theirs} where the search began"
    if not (folder / HELD).exists():
        return f"{where}: {folder} is not there; all machines have to share the run's folder"
    return (
        ""
        if _held(folder)
        else f"{where}: locks in {folder} are not seen from other machines; take a file system whose flock all of them see (NFS 4, CephFS, Lustre with -o flock)"
    )


def _held(folder: Path) -> bool:
    """Whether who began the search is there, as far as this machine can see."""
    with (folder / HELD).open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
