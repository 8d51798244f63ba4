"""A process that is killed, whenever that is, is started again and ends with the bits of one that was not; what it commits is flushed before it counts."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterable

from bench import STEPS, Bench, points
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
    title = "killed after and in each write of a save, and of what ends a training, it goes on to the same bits"
    counted, draw = tally("R2", title, bench.subject.name), random.Random(2)
    found = bench.count("count", "late")
    first = next(one.place for one in found if any(part in one.path for part in SAVES))
    last = next(one.place for one in found if one.place > first and one.path == "events.jsonl") if ours else len(found)
    save = [one for one in found if first <= one.place < last]  # the checkpoint of step 21, and what goes for it
    chosen = points(save, many(len(save) if ours else 14, 1), draw)
    if ours:
        chosen += points(after_the_last_save(found), many(len(found), 1), draw)
    for one in chosen:
        for mode in ("kill", "torn") if one.kind in ("write", "rename", "pwrite") else ("kill",):
            bench.begin("late")
            ended = bench.run(Fault(mode, one.place))
            assert ended.struck
            assert ended.code == -signal.SIGKILL
            whole = not ours or bench.loadable()
            trial = f"{mode} {one.place} {one.kind} {one.path}"
            bench.judge(lambda name, held, *rest, whole=whole: counted.verdict(name, held and whole, *rest), trial)


def after_the_last_save(operations: list[Operation]) -> list[Operation]:
    """What makes an artifact of a training: the adapter, the manifest, its name; and that its checkpoints go."""
    saved = f"/checkpoints/step-{STEPS:08d}"
    begun = next(one.place for one in operations if one.kind == "rename" and one.path.endswith(saved))
    return [one for one in operations if one.place > begun]


COMMITTED = re.compile(r"(?:.*/)?(?:step-\d{8}|[a-z]+-[0-9a-f]{12})")
"""Paths of checkpoints and artifacts."""
FLUSHES = ("fsync", "fdatasync")


def test_what_is_committed_is_flushed_before_it_gets_its_name(bench, tally, many):
    """A kill leaves the system's cache as it is, so that it would not show what a power cut loses; the order of operations does."""
    if bench.subject.name != "tunesmith":
        return
    counted = tally("R2-flushed", "every file of a checkpoint and an artifact is flushed before it gets its name, and the folder above after it")  # fmt: skip
    bench.begin()
    python, how, code, _, *rest = command = bench.subject.command(bench.place)
    if many(1, 0):
        command = [python, how, code, "run", *rest, "deploy.ungated=true"]
    ended = bench.run(below=".", command=command)
    assert ended.code == 0, ended.said
    folders = [one.path for one in ended.operations if one.kind == "rename" and COMMITTED.fullmatch(one.path)]
    assert len(folders) > STEPS // 3
    for folder in folders:
        lost = unflushed(ended.operations, folder, files(bench, folder))
        counted.verdict(folder, not lost, reason=f"a power cut may lose {lost}")
    less = [one for one in ended.operations if not (one.kind in FLUSHES and "weights" in one.path)]
    assert unflushed(less, folders[3], files(bench, folders[3])) == ["weights.safetensors"]


def files(bench: Bench, folder: str) -> list[str]:
    """Of a committed folder, also of one that is gone: the manifest, and what it names."""
    kept = bench.place.with_name(f"{bench.place.name}.trial") / "kept"
    there = [bench.place / folder / "manifest.json", *kept.glob(f"*{folder.rpartition('/')[2]}|manifest.json")]
    of = [path for path in there if path.exists() and ("|best|" in path.name) == ("/best/" in folder)]
    return ["manifest.json", *json.loads(of[0].read_text())["files"]]


def unflushed(operations: list[Operation], folder: str, names: Iterable[str]) -> list[str]:
    """What may be lost of a folder though it has its name: files written after they were flushed, or whose own folder was not flushed after them; and the name."""
    named = next(place for place, one in enumerate(operations) if one.kind == "rename" and one.path == folder)
    before, lost = list(enumerate(operations[:named])), []
    for name in names:
        inside, _, last = f"{folder}.partial/{name}".rpartition("/")
        own = re.compile(rf"{re.escape(inside)}/({re.escape(last)}|\.{re.escape(last)}\.\d+\.tmp)")
        library = re.compile(rf"{re.escape(inside)}/\.tmp\w{{6}}")  # safetensors' file, which it renames unseen
        flushed = [place for place, one in before if one.kind in FLUSHES and own.fullmatch(one.path)]
        made = [place for place, one in before if one.kind == "rename" and own.fullmatch(one.path)]
        written = [
            place for place, one in before
            if one.kind not in (*FLUSHES, "rename", "unlink") and (own.fullmatch(one.path) or library.fullmatch(one.path))
        ]  # fmt: skip
        above = [place for place, one in before if one.kind in FLUSHES and one.path == inside]
        sound = max(flushed, default=-1) > max(written, default=-1)
        if not sound or max(above, default=-1) < max([*written, *made], default=-1):
            lost.append(name)
    after = operations[named + 1 : named + 2]
    if [(one.kind in FLUSHES, one.path) for one in after] != [(True, folder.rpartition("/")[0])]:
        lost.append("its name")
    return lost
