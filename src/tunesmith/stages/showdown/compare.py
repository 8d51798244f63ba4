"""Compare: every road's answers to the same test rows, with paired differences, beside what each cost and how far it went."""

import json
from typing import Any

from tunesmith.base import Artifact, DataError, Output, Stage
from tunesmith.base.files import read_json, write_atomic, write_json
from tunesmith.base.spec import validate
from tunesmith.data.example import Example
from tunesmith.data.prepared import load_examples
from tunesmith.grading.scoreboard import scoreboard

from ..evaluate import Evaluate
from .settings import START, Showdown


def compare(
    spec: Showdown, prepared: Artifact, evaluated: Artifact, *roads: Artifact, out: Output, costs: dict[str, Any], about: dict[str, Any], seed: int
) -> None:  # fmt: skip
    """Write `results.json` and `answers.jsonl`.

    Args:
        prepared: of the start.
        evaluated: of the start, where the base answered too.
        roads: of each road its evaluation and its divergence, in order.
        costs: of the start, and of each road with the steps it rests on.
        about: how each run was made.

    Raises:
        DataError: two roads answered different test rows.
    """
    settings = validate(Evaluate, evaluated.manifest["spec"], "evaluate")
    examples = load_examples(prepared.path, "test", settings.rows)
    answers = {"base": read_json(evaluated / "base.json"), START: read_json(evaluated / "tuned.json")}
    divergences = {}
    for name, found, distance in zip(spec.roads, roads[::2], roads[1::2], strict=True):
        _check_rows(name, examples, found)
        answers[name] = read_json(found / "tuned.json")
        divergences[name] = distance.metrics
    results = {
        "against": spec.against,
        "budget": spec.budget,
        "task": _board(spec, examples, answers, settings, seed),
        "divergence": divergences,
        "cost": costs,
        "about": about,
        "environment": evaluated.manifest["environment"],
    }
    write_json(out / "results.json", results)
    lines = (
        {"origin": example.origin, "prompt": str(example.asked[-1].get("content") or ""), "gold": example.gold, "answers": {name: given[row] for name, given in answers.items()}}
        for row, example in enumerate(examples)
    )  # fmt: skip
    write_atomic(out / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    kind, block = next((kind, block) for kind, block in results["task"]["graders"].items() if block["headline"])
    out.metrics.update({"grader": kind, **{part: block[part] for part in ("unit", "systems", "differences")}})


def _check_rows(name: str, examples: list[Example], evaluated: Artifact) -> None:
    """A paired comparison is one of answers to the same rows."""
    with (evaluated / "answers.jsonl").open(encoding="utf-8") as file:
        origins = [json.loads(line)["origin"] for line in file]
    if origins != [example.origin for example in examples]:
        raise DataError(f"{name}: answered other test rows than the start; give base.prepare.test a file of its own")


def _board(
    spec: Showdown, examples: list[Example], answers: dict[str, list[str]], settings: Evaluate, seed: int
) -> dict[str, Any]:
    """The scoreboard of all systems, each road's differences being from the one that they are compared with."""
    graders = [grader for grader in settings.graders if grader.reads == "answers"]
    board = scoreboard(examples, answers, graders, seed=seed, subject=spec.against, against=())
    for name in (START, *spec.roads):
        if name != spec.against:
            pair = {each: answers[each] for each in (name, spec.against)}
            found = scoreboard(examples, pair, graders, seed=seed, subject=name)
            for kind, block in found["graders"].items():
                board["graders"][kind]["differences"] |= block["differences"]
    return board


STAGE = Stage("compare", 1, compare)
