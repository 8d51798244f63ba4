"""A disk that is full, at whichever write, is said in one line and costs nothing but time: with room again the run ends with the same bits."""

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, points
from faults import Ended, Fault, Operation
from subjects import STEPS

from tunesmith.base import Run
from tunesmith.training.checkpoint import load_newest

SAID = re.compile(
    r"^tunesmith: (.+?): the disk is full: (?:[\d,]+ bytes are needed and|(more) bytes are needed than the) [\d,]+ free; free some space and run the same command again",
    re.MULTILINE,
)
KNOWN = re.compile(r"/checkpoints/|(^|/)(\.?events\.jsonl|\.?stages\.json|\.?manifest\.json|\.?state\.json)")
"""Paths of files whose size is known before they are written: of them the bytes needed are said."""
SEGMENTS = {"initialise": "", "finetune": "late", "evaluate": "trained", "run": "evaluated"}
"""Commands, and the states they begin from; together they write all that a run writes."""


def segments(bench: Bench, whole: bool) -> dict[str, tuple[str, list[str]]]:
    """States to begin from and commands, by name: together they write all that a run writes. In the suite, up to the end of training."""
    python, how, *rest = bench.subject.command(bench.place)
    if bench.subject.name != "tunesmith":
        return {"train": ("late", [python, how, *rest])}
    code, _, *given = rest
    commands = {
        name: [python, how, code, name, *given, *(["deploy.ungated=true"] if name == "run" else [])]
        for name in SEGMENTS
    }
    if whole and not (bench.root / "evaluated").exists():
        for name, kept in (("finetune", "trained"), ("evaluate", "evaluated")):
            bench.begin(SEGMENTS[name])
            assert bench.run(command=commands[name]).code == 0
            bench.keep(kept)
    return {name: (SEGMENTS[name], commands[name]) for name in list(SEGMENTS)[: None if whole else 2]}


def sites(operations: list[Operation]) -> list[Operation]:
    """The first operation of each kind on each file, steps and numbers of processes aside; a folder's temporary files are told apart by their order."""
    found: dict[tuple[str, str], Operation] = {}
    temporaries: dict[str, list[str]] = {}
    for one in operations:
        folder, _, name = one.path.rpartition("/")
        if re.fullmatch(r"\.tmp\w{6}", name):
            known = temporaries.setdefault(folder, [])
            known += [] if name in known else [name]
            name = "temporary " + "x" * known.index(name)
        pattern = re.sub(r"\d+|[0-9a-f]{12}", "", f"{folder}/{name}")
        found.setdefault((one.kind, pattern), one)
    return list(found.values())


def made(bench: Bench) -> dict[str, Any]:
    """What each finished stage is, by content; of a peer, what its training left."""
    if bench.subject.name != "tunesmith":
        return bench.end()
    run = Run(bench.place / "run")
    return {name: run.artifact(name).id for name, state in run.states.items() if state["state"] == "done"}


def told(bench: Bench, ended: Ended) -> str:
    """What is wrong with how it ended; nothing if it said where, what is needed and what is free."""
    found = SAID.search(ended.said)
    if ended.code <= 0:
        return f"exit {ended.code}"
    if bench.subject.name != "tunesmith":
        return (
            ""
            if "bytes" in ended.said and "free" in ended.said
            else f"does not say bytes needed and free: {ended.said.strip()[-120:]}"
        )
    if not found or "Traceback" in ended.said:
        return f"said {ended.said.strip()[-250:]}"
    told = Path(found[1])
    if not ended.struck:  # a small disk was filled
        return "" if told.is_relative_to(bench.place) else f"the path is {told}"
    struck = next(one.path for one in ended.operations if one.struck)
    if found[2] and KNOWN.search(struck):
        return f"does not say how many bytes {struck} needs"
    return "" if near(told, bench.place / "run" / struck) else f"the path is {told}, not {struck}"


def near(told: Path, struck: Path) -> bool:
    """Whether what is said leads to what was struck: in its folder, that folder, of a folder what is written in it, or the folder in which a stage or a save is at work."""
    beside = struck.parent in (told, told.parent) or struck == told.parent
    return beside or (told.suffix == ".partial" and struck.is_relative_to(told))


def test_a_full_disk_is_said_and_costs_nothing(bench, tally, many):
    title = "the disk is full at a write: said with figures, then on to the same bits"
    counted, draw, ours = tally("R3", title, bench.subject.name), random.Random(3), bench.subject.name == "tunesmith"
    for name, (state, command) in segments(bench, bool(many(1, 0))).items():
        found = sites(bench.count("full", state, command=command))
        wanted = made(bench)
        assert wanted
        for one in points(found, many(len(found) if ours else 12, 1), draw):
            bench.begin(state)
            before = made(bench) if ours else {}
            ended = bench.run(Fault("full", one.place), command=command)
            assert ended.struck
            wrong = told(bench, ended) or (lost(bench, before, ended, state == "late") if ours else "")
            again = bench.run(command=command)
            same = again.code == 0 and made(bench) == wanted
            reason = f"{wrong}; again: exit {again.code}, {'same' if same else 'other'} content"
            counted.verdict(
                f"{name}: {one.kind} {one.path}", same and not wrong, ended.code > 0 or again.code != 0, reason
            )


def lost(bench: Bench, before: dict[str, Any], ended: Ended, training: bool) -> str:
    """What was whole and is not there any more: a finished stage, or a checkpoint but the one that was being written."""
    if not before.items() <= made(bench).items():
        return "what was finished is lost"
    struck = next(one for one in ended.operations if one.struck)
    whole = {step_of(one.path) for one in ended.operations if one.place < struck.place} - {step_of(struck.path)}
    return "a checkpoint that was whole is lost" if training and newest(bench) < max({18, *whole}) else ""


def step_of(path: str) -> int:
    """The step of the checkpoint that a path lies in; 0 in none."""
    found = re.search(r"checkpoints/step-(\d+)", path)
    return int(found[1]) if found else 0


def newest(bench: Bench) -> int:
    """The step of the newest whole checkpoint; of a training that has ended, its last."""
    run = bench.place / "run"
    if list(run.glob("finetune-*/manifest.json")):  # made, or all but its name is there
        return STEPS
    found = [load_newest(folder, lambda _: None) for folder in run.glob("finetune-*.partial/checkpoints")]
    return max((one.step for one in found if one), default=0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "place"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_really_full(bench, tally, many, disk):
    if bench.subject.name != "tunesmith":
        pytest.skip("tried at injected writes")
    counted = tally("R3-disk", "a small disk is full: said with figures, then on to the same bits", bench.subject.name)
    small = Bench(bench.server, disk.parent, disk, bench.model)
    small.begin()
    empty = _free(disk)
    assert small.run().code == 0
    took = empty - _free(disk)
    wanted = small.subject.result(small.place)
    count = many(8, 1)
    for share in [(place + 0.5) / count for place in range(count)]:
        small.begin()
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(_free(disk) - int(share * took)))
        ended = small.run()
        ballast.unlink()
        wrong = told(small, ended)
        again = small.run()
        held = again.code == 0 and small.subject.result(small.place) == wanted and not wrong
        counted.verdict(f"{share:.0%} of {took} bytes free", held, ended.code > 0, f"{wrong}; again: exit {again.code}")


def _free(disk: Path) -> int:
    return shutil.disk_usage(disk).free


def test_each_temporary_file_of_a_folder_is_struck():
    """Of every save alike: the steps do not tell them apart."""
    names = (".tmpAbC123", ".tmpAbC123", ".tmpxYz789")
    made = [f"checkpoints/step-0000000{step}.partial/{name}" for step in (3, 6) for name in names]
    operations = [Operation(place, "write", path, False) for place, path in enumerate(made, 1)]
    assert [one.place for one in sites(operations)] == [1, 3]


@pytest.mark.parametrize(
    ("told", "struck", "leads"),
    [
        ("run/plan.json", "run/.plan.json.7.tmp", True),
        ("run/evaluate-0.partial/proof.json", "run/evaluate-0.partial", True),  # the folder is flushed after a rename
        ("run/evaluate-0.partial", "run/evaluate-0.partial/model/config.json", True),
        ("run/evaluate-0.partial/proof.json", "run/deploy-0.partial", False),
        ("run", "run/deploy-0.partial/model/config.json", False),
        ("run/plan.json", "run/deploy-0.partial/model", False),
    ],
)
def test_what_is_told_has_to_lead_to_what_was_struck(told, struck, leads):
    assert near(Path(told), Path(struck)) == leads
