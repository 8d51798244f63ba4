"""Trials with faults at chosen file operations: `faults.c` strikes in the process, a server forks the processes, and what was struck is read from a journal."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from subjects import Subject

IMPORTED = {
    "tunesmith": (
        "tunesmith.cli.running",
        "tunesmith.stages.search.stage",
        "transformers.models.llama.modeling_llama",
        "torch._dynamo",
        "peft",
    ),
    "trl": ("peer",),
}
"""What a subject's process needs, imported before it is forked."""

Mode = Literal["count", "kill", "torn", "full", "signal"]
"""Nothing happens; killed after the operation; killed in its middle; the disk is full from it on; a signal arrives after it."""


def compiled(folder: Path) -> Path | None:
    """The library that strikes, or None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    made, source = folder / "faults.so", Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


@dataclass(frozen=True)
class Fault:
    """What happens at which operation."""

    mode: Mode = "count"
    at: int = 0
    """Counted from 1, of those on paths below the watched folder that hold `only`; "full" counts those alone that take room."""
    only: str = ""
    signal: int = 0


NONE = Fault()
"""Nothing happens."""


@dataclass(frozen=True)
class Operation:
    """A line of the journal."""

    place: int
    kind: str
    path: str
    """Below the watched folder."""
    struck: bool


@dataclass
class Ended:
    """What became of a process."""

    code: int
    """Its exit status; less than 0 is the signal that it was killed by."""
    said: str
    operations: list[Operation] = field(default_factory=list)

    @property
    def struck(self) -> bool:
        """Whether the fault was injected."""
        return any(operation.struck for operation in self.operations)


class Server:
    """Forked processes of a subject; each does what a process started by hand does, under a fault."""

    def __init__(self, subject: Subject, library: Path, folder: Path) -> None:
        self.subject, self.folder, self.library = subject, folder, library
        python, script = subject.command(folder)[0], Path(__file__).with_name("server.py")
        self.process = subprocess.Popen(
            [python, str(script), *IMPORTED[subject.name]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**subject.environment(), "LD_PRELOAD": str(library), "PYTHONPATH": _with_here()}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._said() == "ready"

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(
        self, folder: Path, fault: Fault = NONE, *, command: list[str] | None = None, during: Callable[[int], None] = lambda _: None,
        below: str = "run",
    ) -> Ended:  # fmt: skip
        """A process to its end.

        Args:
            folder: of the trial; journal, outputs and what was removed (`kept`) lie beside it.
            fault: what it meets.
            command: other than the subject's own.
            during: is called with the process's number once it runs.
            below: the watched folder.
        """
        beside = folder.with_name(f"{folder.name}.trial")
        (beside / "kept").mkdir(parents=True, exist_ok=True)
        journal, output = beside / "journal", beside / "output"
        journal.unlink(missing_ok=True)
        watched = folder.resolve() / below
        environment = {
            "FAULTS_MODE": fault.mode, "FAULTS_AT": str(fault.at), "FAULTS_ONLY": fault.only, "FAULTS_SIGNAL": str(fault.signal),
            "FAULTS_BELOW": str(watched), "FAULTS_LOG": str(journal), "FAULTS_KEPT": str(beside / "kept"),
        }  # fmt: skip
        asked: dict[str, Any] = {
            "command": command or self.subject.command(folder), "environment": environment, "folder": str(folder), "output": str(output),
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        during(int(self._said()))
        code = int(self._said())
        lines = journal.read_text().splitlines() if journal.exists() else []
        return Ended(code, output.read_text(errors="replace"), [_read(line, watched) for line in lines])

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _with_here() -> str:
    return os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))


def _read(line: str, watched: Path) -> Operation:
    place, kind, path, struck = line.split("\t")
    return Operation(int(place), kind, path.removeprefix(f"{watched}/"), struck == "struck")
