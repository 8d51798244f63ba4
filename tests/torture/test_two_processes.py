"""Two processes on one run's folder: one runs, the other is refused at once and told who is there; the lock of a killed one counts for nothing."""

import os
import resource
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

from bench import Bench

AT_ONCE = 2.0
"""Seconds, from its start to its end, Python's own included, that a process may take to find out: of a core, and in a whole run, on an idle machine, of the clock."""
WAITING = 30.0
"""Seconds of the clock within which it has to have ended on a machine that is busy, so that it may not sleep either."""
SILENT = ("both ran", "other bits")
"""What looks as if it were well."""


def test_one_of_two_processes_runs(bench, tally, many):
    """The first is held at its work until the second has ended; then, in turns, it goes on to its end or is killed."""
    ours = bench.subject.name == "tunesmith"
    title = "of two processes one runs, the other is told by whom within 2 s; a killed one's lock is free"
    counted = tally("R6", title, bench.subject.name)
    for number in range(many(20 if ours else 4, 2)):
        bench.begin()
        seen: list[str] = []
        then = (signal.SIGKILL, signal.SIGCONT)[number % 2]
        first = bench.run(during=partial(_meet, bench, then, many(AT_ONCE, WAITING), seen))
        last = bench.run() if then == signal.SIGKILL else first
        if last.code != 0:
            seen.append(f"after that: exit {last.code}, {last.said.strip()[-150:]}")
        elif bench.end() != bench.wanted:
            seen.append("other bits")
        took, *wrong = seen
        trial = f"{number}: {took}, then the first {'was killed' if then == signal.SIGKILL else 'went on'}"
        counted.verdict(trial, not wrong, not any(one in SILENT for one in wrong), "; ".join(wrong))


def _meet(bench: Bench, then: signal.Signals, most: float, seen: list[str], first: int) -> None:
    """Start a second process while the first is held at its work, note how long it took and what it did wrong, and send the first its signal."""
    folder = bench.place / "run"
    while not ((folder / ".lock").exists() and str(first) in (folder / ".lock").read_text()) and not list(
        folder.glob("checkpoint-*")
    ):
        time.sleep(0.02)
    os.kill(first, signal.SIGSTOP)
    while not _held(first):
        time.sleep(0.01)
    before, start = _seconds(), time.monotonic()
    second = subprocess.run(
        bench.subject.command(bench.place), env=bench.subject.environment(), capture_output=True, text=True, check=False
    )
    took, waited, said = _seconds() - before, time.monotonic() - start, second.stderr.strip()
    assert _held(first), "the two were never there together"
    os.kill(first, then)
    seen.append(f"the second ended after {waited:.1f} s")
    if second.returncode == 0:
        seen.append("both ran")
    elif f"process {first} on {socket.gethostname()}" not in said:
        seen.append(f"said {said[-200:]}")
    elif took > AT_ONCE or waited > most:
        seen.append(f"took {took:.1f} s of a core and {waited:.1f} s in all")


def _held(process: int) -> bool:
    """Whether a process is there and stopped.

    Raises:
        FileNotFoundError: it has ended.
    """
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _seconds() -> float:
    """Of a core, that processes started here have taken."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
