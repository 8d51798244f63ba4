"""One of several processes that work at a search: `python -m tunesmith.stages.search.worker FOLDER BYTES [CODE ...]`."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tunesmith.base import Artifact, Events, Interrupted, MachineError, TunesmithError
from tunesmith.base.files import read_json, write_json
from tunesmith.base.launched import usable_cores
from tunesmith.base.secrets import redact_crashes, redacted
from tunesmith.base.signals import interruptible
from tunesmith.base.spec import validate
from tunesmith.grading.function import code_files, load_code

from ..machine import available_memory
from ..recipe import Recipe
from .study import Study

JOB = "job.json"
"""What a worker has to know, in the search's folder."""


def work_together(study: Study, workers: int) -> None:
    """Work at a study with several processes, each with its share of memory and cores; what one that dies leaves, the others take over.

    Raises:
        Interrupted: a signal arrived; all have saved what they were at.
        MachineError: a worker died, and something is left to do.
    """
    lay_out(study)
    share, cores = available_memory() // workers, max(1, usable_cores() // workers)
    code = [str(path) for path in code_files()]
    started = [begin(study.folder, share, cores, code) for _ in range(workers)]
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            process.wait()
    failed = [str(status) for status in codes if status]
    for status in failed:
        study.events.write("worker_lost", reason=f"a worker ended with {status}")
    look_back(study, failed)


def lay_out(study: Study) -> None:
    """Write what workers have to know into the search's folder."""
    study.folder.mkdir(parents=True, exist_ok=True)
    write_json(study.folder / JOB, {
        "recipe": study.recipe.model_dump(mode="json"), "prepared": str(study.prepared.path.resolve()), "events": str(study.events.path.resolve()),
        "tags": study.events.tags,
    })  # fmt: skip


def begin(folder: Path, share: int, cores: int, code: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """A worker with so many bytes of memory, which knows the functions in some files; it ends when whoever began it does.

    It computes in as many threads as it has cores, or in fewer where OMP_NUM_THREADS says so.
    """
    command = [sys.executable, "-m", __name__, str(folder), str(share), *code]
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(said), cores) if said.isdecimal() else cores
    return subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def look_back(study: Study, failed: Sequence[str]) -> None:
    """See that others took over what workers left that failed.

    Raises:
        MachineError: something is left to do.
    """
    if failed and study.left():
        first = f"a worker ended with {failed[0]}"
        died = first if len(failed) == 1 else f"{len(failed)} workers ended with {', '.join(failed)}"
        raise MachineError(f"search: {died}, and trials are left; run the same command again to go on from here")


def main() -> None:
    """Work at the study whose folder is given, for as long as whoever started this process lives."""
    redact_crashes()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, budget = Path(sys.argv[1]), int(sys.argv[2])
    try:
        with interruptible():
            job = read_json(folder / JOB)
            for path in sys.argv[3:]:
                load_code(Path(path))
            recipe, prepared = validate(Recipe, job["recipe"], str(folder / JOB)), Artifact.open(Path(job["prepared"]))
            Study(folder, recipe, prepared, Events(Path(job["events"]), **job["tags"]), budget).work()
    except Interrupted as error:
        os._exit(error.exit_code)
    except TunesmithError as error:
        print(f"tunesmith: {redacted(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """Nothing is ever written to standard input; it ends when the process that holds its other end does, however that died."""
    os.read(0, 1)  # not sys.stdin, whose lock an ending interpreter would wait for
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
