"""Two processes on one run's folder: one runs, the other is refused at once and told who is there; the lock of a killed one counts for nothing."""

import os
import resource
import signal
import socket
import subprocess
import time

from bench import Bench

AT_ONCE = 2.0
"""Seconds of a core, from its start to its end, Python's own included, that a process may take to find out; on an idle machine they are the clock's."""


WAITING = 30.0
"""Seconds of the clock within which it has to have ended however busy the machine is, so that it may not sleep either."""


def test_one_of_two_processes_runs(bench, tally, many):
    counted = tally(
        "R6", "of two processes one runs, the other is told by whom; a killed one's lock is free", bench.subject.name
    )
    for number in range(many(20 if bench.subject.name == "tunesmith" else 3, 1)):
        bench.begin()
        seen: list[str] = []
        first = bench.run(during=lambda process, seen=seen: _meet(bench, process, seen))
        assert first.code == -signal.SIGKILL or bench.subject.name != "tunesmith"
        third = bench.run()
        if third.code != 0 or bench.end() != bench.wanted:
            seen.append(f"after the kill: exit {third.code}, {third.said.strip()[-150:]}")
        counted.verdict(f"{number}", not seen, False, "; ".join(seen))


def _meet(bench: Bench, first: int, seen: list[str]) -> None:
    """Start a second process while the first is at work, note what it did wrong, and kill the first."""
    folder = bench.place / "run"
    while not ((folder / ".lock").exists() and str(first) in (folder / ".lock").read_text()) and not list(
        folder.glob("checkpoint-*")
    ):
        time.sleep(0.02)
    before, start = _seconds(), time.monotonic()
    second = subprocess.run(
        bench.subject.command(bench.place), env=bench.subject.environment(), capture_output=True, text=True, check=False
    )
    took, waited, said = _seconds() - before, time.monotonic() - start, second.stderr.strip()
    try:
        os.kill(first, signal.SIGKILL)
    except ProcessLookupError:
        seen.append("the first had ended")
    if second.returncode == 0:
        seen.append("both ran")
    elif f"process {first} on {socket.gethostname()}" not in said:
        seen.append(f"said {said[-200:]}")
    elif took > AT_ONCE or waited > WAITING:
        seen.append(f"took {took:.1f} s of a core and {waited:.1f} s in all")


def _seconds() -> float:
    """Of a core, that processes started here have taken."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
