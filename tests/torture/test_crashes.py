"""A process that is killed, whenever that is, is started again and ends with the bits of one that was not."""

import os
import random
import signal
import time

from bench import points
from faults import Fault, Operation

SAVES = ("/checkpoints/", "/best/", "checkpoint-")
"""What the paths of a save hold."""


def saving(operations: list[Operation]) -> list[Operation]:
    """The operations of saves."""
    return [one for one in operations if any(part in one.path for part in SAVES)]


def test_killed_at_random_times_it_goes_on_to_the_same_bits(bench, tally, many):
    ours = bench.subject.name == "tunesmith"
    title = "killed at a random time, it goes on to the same bits"
    counted, draw, state = tally("R1", title, bench.subject.name), random.Random(1), "" if many(1, 0) else "late"
    begun = time.monotonic()
    found = saving(bench.count("count", state))
    took = time.monotonic() - begun
    for number in range(many(25 if ours else 6, 1)):
        while True:
            bench.begin(state)
            after = draw.uniform(0, took)
            ended = bench.run(during=lambda process, after=after: _kill(process, after))
            if ended.code == -signal.SIGKILL:
                break
            took *= 0.95  # the machine is quicker now: it had ended
        bench.judge(counted.verdict, f"{number}: after {after:.2f} s")
    for number, one in enumerate(points(found, many(25 if ours else 6, 1), draw)):
        bench.begin(state)
        ended = bench.run(Fault("torn" if number % 2 else "kill", one.place))
        assert ended.struck
        assert ended.code == -signal.SIGKILL
        bench.judge(counted.verdict, f"in a save, {'in' if number % 2 else 'after'} {one.kind} {one.path}")


def _kill(process: int, after: float) -> None:
    time.sleep(after)
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_killed_after_each_operation_of_a_save_it_goes_on_to_the_same_bits(bench, tally, many):
    ours = bench.subject.name == "tunesmith"
    counted = tally("R2", "killed after and in each write of a save, it goes on to the same bits", bench.subject.name)
    found = bench.count("count", "late")
    first = next(one.place for one in found if any(part in one.path for part in SAVES))
    last = next(one.place for one in found if one.place > first and one.path == "events.jsonl") if ours else len(found)
    save = [one for one in found if first <= one.place < last]  # the checkpoint of step 21, and what goes for it
    draw = random.Random(2)
    for one in points(save, many(len(save) if ours else 14, 1), draw):
        for mode in ("kill", "torn") if one.kind in ("write", "rename", "pwrite") else ("kill",):
            bench.begin("late")
            ended = bench.run(Fault(mode, one.place))
            assert ended.struck
            assert ended.code == -signal.SIGKILL
            whole = not ours or bench.loadable()
            trial = f"{mode} {one.place} {one.kind} {one.path}"
            bench.judge(lambda name, held, *rest, whole=whole: counted.verdict(name, held and whole, *rest), trial)
