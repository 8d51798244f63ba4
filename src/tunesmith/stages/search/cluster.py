"""Workers of a search on the machines of a Ray cluster: each is the program that one machine starts too, in a folder that all machines share."""

import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.base import Interrupted, MachineError, TunesmithError
from tunesmith.base.artifact import environment
from tunesmith.base.extras import extra
from tunesmith.base.files import digest, known_sha256, read_json
from tunesmith.base.signals import deferred
from tunesmith.base.spec import validate
from tunesmith.grading.function import code_files, load_code
from tunesmith.models.find import files_of
from tunesmith.models.load import resolve_precision

from ..inputs import read_in_training
from ..machine import available_memory
from ..recipe import Recipe
from .study import Study
from .worker import JOB, begin, lay_out, look_back

HELD = ".held"
"""Locked by who began the search, for as long as workers shall go on; `ray.cancel` ends who calls it if the task ends just then."""
SAME = ("tunesmith", "torch", "transformers", "tokenizers", "numpy")
"""Packages that have to be alike on all machines."""
REACHED = 10.0
"""Seconds in which a cluster has to answer."""
LOOK = 0.5
"""Seconds between looks at whether a worker has ended, or shall end."""
PATIENCE = 60.0
"""Seconds that workers have to save what they are at, once the search is to end."""


@dataclass(frozen=True)
class Room:
    """What each worker gets of its machine."""

    cores: int
    gpus: int

    def fits(self, machine: dict[str, float]) -> int:
        """How many workers a machine has room for."""
        found = int(machine.get("CPU", 0)) // self.cores
        return min(found, int(machine.get("GPU", 0)) // self.gpus) if self.gpus else found


def room(machines: Sequence[dict[str, float]], workers: int) -> Room:
    """The most cores that each of some workers can have at the same time, and a GPU each if the cluster has any.

    Args:
        machines: `CPU` and `GPU` of each, as Ray names them.
        workers: how many there shall be.

    Raises:
        MachineError: there are not as many cores, or GPUs.
    """
    gpus = min(1, sum(int(machine.get("GPU", 0)) for machine in machines))  # a training takes one
    for cores in range(max((int(machine.get("CPU", 0)) for machine in machines), default=0), 0, -1):
        given = Room(cores, gpus)
        if sum(given.fits(machine) for machine in machines) >= workers:
            return given
    most = sum(Room(1, gpus).fits(machine) for machine in machines)
    raise MachineError(
        f"search: the cluster has room for {most} workers, each with a core{' and a GPU' if gpus else ''}, not for {workers}"
    )


def work_on_cluster(study: Study, workers: int) -> None:
    """Work at a study by workers on the Ray cluster that this machine belongs to; what one that dies leaves, the others take over.

    Raises:
        Interrupted: a signal arrived; all save what they are at.
        MachineError: there is no cluster, it is too small, or a machine of it has another folder, locks, model or versions; or workers died, and something is left to do.
    """
    ray = extra("ray", "ray", "search on a cluster")
    with deferred() as stop, joined(ray):  # Ray's own calls do not bear what a signal raises
        lay_out(study)
        given = room([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        task = ray.remote(num_cpus=given.cores, num_gpus=given.gpus, max_retries=0, scheduling_strategy="SPREAD")(
            work_here
        )
        wanted, waiting, failed, patience = facts(study.recipe), list[Any](), list[str](), LOOK
        code = [str(path) for path in code_files()]
        try:
            with (study.folder / HELD).open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                waiting += [
                    task.remote(str(study.folder.resolve()), given, workers, wanted, code) for _ in range(workers)
                ]
                while waiting:
                    stop.check()
                    ended, waiting = ray.wait(waiting, timeout=LOOK)
                    why = [_end(ray, each) for each in ended]
                    if "" in why:  # nothing is left to do, also for those that found no room
                        break
                    failed += why
                    for reason in why:
                        study.events.write("worker_lost", reason=f"a worker ended with {reason}")
        except Interrupted:
            patience = PATIENCE
            raise
        finally:
            if waiting:
                ray.wait(waiting, num_returns=len(waiting), timeout=patience)
    look_back(study, failed)


@contextmanager
def joined(ray: Any) -> Iterator[None]:
    """As a part of the cluster; whoever was one before stays one.

    Raises:
        MachineError: there is none, or it is of another version.
    """
    before, address, ours = (
        ray.is_initialized(),
        os.environ.get("RAY_ADDRESS", "auto"),
        signal.getsignal(signal.SIGTERM),
    )
    if not before:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # Ray would end the process
        try:
            _answers(address)
            ray.init(address=address, configure_logging=False)
        except (OSError, ValueError) as error:
            raise MachineError(
                f"search: no Ray cluster was found; begin one by `ray start --head`, or join one by `ray start --address=HOST:6379` ({_said(error)})"
            ) from None
        except (RuntimeError, ray.exceptions.RayError) as error:
            ray.shutdown()
            raise MachineError(f"search: the Ray cluster does not take this machine: {_said(error)}") from None
        finally:
            if signal.getsignal(signal.SIGTERM) is not ours:
                signal.signal(signal.SIGTERM, ours)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
        return f"{type(error).__name__}: {_said(error)}"


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def work_here(folder: str, given: Room, workers: int, wanted: dict[str, Any], code: Sequence[str] = ()) -> str:
    """On some machine of the cluster: a worker, and why it failed; empty if it did not."""
    import ray

    if reason := unfit(Path(folder), wanted, code):
        return reason
    mine = ray.get_runtime_context().get_node_id()
    machine = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == mine)
    beside = 1 if given.gpus else min(workers, given.fits(machine))
    process = begin(Path(folder), available_memory() // beside, given.cores, code)
    try:
        while process.poll() is None and _held(Path(folder)):
            time.sleep(LOOK)
        if process.poll() is None:
            return "the search ended before it"
        return str(process.returncode or "")
    finally:
        process.terminate()
        process.wait()


def facts(recipe: Recipe) -> dict[str, Any]:
    """What has to be alike on all machines, for trials to be compared: versions (of Python the minor one), the precision that `auto` means, and the files that are read.

    Raises:
        ModelError: the model is not here.
        MachineError: a package that has it is missing.
    """
    found = {name: environment()[name] for name in SAME}
    model, beside = (
        digest([[path.name, known_sha256(path)] for path in files])[:12]
        for files in (files_of(recipe.model), read_in_training(recipe.finetune))
    )
    return {
        "python": sys.version_info[:2],
        **found,
        "precision": resolve_precision(recipe.precision),
        "model": model,
        "what judges or teaches": beside,
    }


def unfit(folder: Path, wanted: dict[str, Any], code: Sequence[str] = ()) -> str:
    """Why trials cannot be trained here; empty if they can.

    Args:
        folder: the search's.
        wanted: the `facts` of who began it.
        code: files of functions that the recipe names.
    """
    where = f"machine {os.uname().nodename}"
    if not (folder / HELD).exists():
        return f"{where}: {folder} is not there; all machines have to share the run's folder"
    if not _held(folder):
        return f"{where}: locks in {folder} are not seen from other machines; take a file system whose flock all of them see (NFS 4, CephFS, Lustre with -o flock)"
    try:
        for path in code:
            load_code(Path(path))
        mine = facts(validate(Recipe, read_json(folder / JOB)["recipe"], str(folder / JOB)))
    except TunesmithError as error:
        return f"{where}: {_said(error)}"
    other = next((name for name in wanted if mine[name] != wanted[name]), None)
    return f"{where}: {other} is {mine[other]}, and {wanted[other]} where the search began" if other else ""


def _held(folder: Path) -> bool:
    """Whether who began the search is there, as far as this machine can see."""
    with (folder / HELD).open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
