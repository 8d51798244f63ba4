"""Forks a child for each trial from a Python that has imported everything, which costs seconds once and not a hundred times.

`python server.py MODULE ...` reads a JSON object a line: `command` (as started by hand), `environment` (what is added), `folder` (to work in)
and `output` (the file of both outputs). It answers the child's process number, and when it has ended, its status. No thread runs when it forks.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
from typing import Any


def serve(pipe: Any) -> None:
    """Start what is asked for, one at a time, until there is nothing more."""
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
        print(child, file=pipe, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=pipe, flush=True)


def _become(asked: dict[str, Any]) -> None:
    """Run the command in this child as a Python of its own would, and end as that."""
    os.setsid()
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    ctypes.CDLL(None).faults_arm()
    _, how, *rest = asked["command"]
    code = 1
    try:
        if how == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        else:
            sys.argv = [how, *rest]
            runpy.run_path(how, run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends as a Python does that nobody catches it in
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001  said as Python would, and the child ends
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # what is imported stays; children need not look at it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    serve(answers)
