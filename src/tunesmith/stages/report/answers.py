"""Test rows shown before and after tuning: which ones, by a rule that nobody can bend, and what is right in each."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from tunesmith.base import Artifact, ConfigError
from tunesmith.base.files import read_json
from tunesmith.data.example import Example
from tunesmith.grading import AnswerGrader, Grader
from tunesmith.grading.json_fields import JsonFields, part_name
from tunesmith.grading.reading import read_object

from .source import Source

KINDS = {
    "better": "better than before",
    "worse": "worse than before",
    "wrong": "no better, still wrong",
    "right": "right before and after",
}
QUOTA = {"better": 4, "worse": 4, "wrong": 2, "right": 2}
"""Rows shown of each kind, if there are so many."""
LONGEST = 2000
"""Characters of a text that are shown."""

Rows = list[dict[str, Any]]


def shown(source: Source, before: str | None) -> dict[str, Any] | None:
    """About a dozen test rows with the answers of `before`, the prompts and `tuned`; None where they cannot be graded one by one."""
    evaluated, prepared = source.artifacts.get("evaluate"), source.artifacts.get("prepare")
    grader = the_grader(evaluated) if evaluated else None
    if evaluated is None or prepared is None or grader is None or before is None:
        return None
    rows = rows_of(prepared, evaluated)
    for row in rows:
        row["scores"] = {
            name: grader.score(answer, row["example"])
            for name, answer in row["answers"].items()
            if name in ("base", "few-shot", "prompted", "tuned")
        }
        row["kind"] = _kind(row["scores"][before].share, row["scores"]["tuned"].share)
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS}
    chosen = choose(rows)
    return {
        "grader": grader.called,
        "before": before,
        "rows": len(rows),
        "counts": counts,
        "cards": [card(row, grader) for row in chosen],
    }


def the_grader(evaluated: Artifact) -> AnswerGrader | None:
    """The first grader that can judge one answer by itself, and still judges as it did in the evaluation."""
    return next((grader for grader in _of_answers(evaluated) if _judges_as_then(grader, evaluated)), None)


def unjudged(evaluated: Artifact) -> str:
    """Why there is no such grader, where there is none."""
    graders = _of_answers(evaluated)
    if any(_judges_as_then(grader, evaluated) for grader in graders):
        return "The answers, or the rows that they were given to, are not there to be shown."
    if named := " and ".join(grader.called for grader in graders):
        return f"Rows cannot be told right from wrong: the code that {named} judged by in the evaluation was not given, or has changed since. Write this page again with `tunesmith --code FILE.py report RUN`."
    return "None of the graders judges one answer by itself, so rows cannot be told right from wrong."


def _of_answers(evaluated: Artifact) -> list[AnswerGrader]:
    """The graders that judge one answer by itself."""
    known = [(Grader.member(settings["kind"]), settings) for settings in evaluated.manifest["spec"]["graders"]]
    return [member.model_validate(settings) for member, settings in known if issubclass(member, AnswerGrader)]


def _judges_as_then(grader: AnswerGrader, evaluated: Artifact) -> bool:
    """Whether a grader still judges as in the evaluation: a function whose file is not given, or has changed, does not."""
    results = read_json(evaluated / "results.json")["task"]["graders"]
    try:
        return bool(grader.signature == results.get(grader.called, {}).get("signature"))
    except ConfigError:
        return False


def rows_of(prepared: Artifact, evaluated: Artifact) -> Rows:
    """What was answered, each row with its example; of the test rows that may be some."""
    with (
        (prepared / "test.jsonl").open(encoding="utf-8") as tests,
        (evaluated / "answers.jsonl").open(encoding="utf-8") as answers,
    ):
        known = {example.origin: example for example in (Example.from_json(json.loads(test)) for test in tests)}
        return [{"example": known[row["origin"]], **row} for row in map(json.loads, answers)]


def _kind(before: float, after: float) -> str:
    if after != before:
        return "better" if after > before else "worse"
    return "right" if after == 1.0 else "wrong"


def choose(rows: Rows) -> Rows:
    """QUOTA rows of each kind, those with the smallest hash of their origin; places that stay free go to the kinds that have more."""
    drawn = sorted(rows, key=lambda row: sha256(row["origin"].encode()).digest())
    by_kind = {kind: [row for row in drawn if row["kind"] == kind] for kind in KINDS}
    taken = [row for kind, found in by_kind.items() for row in found[: QUOTA[kind]]]
    spare = [row for kind, found in by_kind.items() for row in found[QUOTA[kind] :]]
    taken += spare[: sum(QUOTA.values()) - len(taken)]
    return [row for kind in KINDS for row in taken if row["kind"] == kind]


def card(row: Mapping[str, Any], grader: AnswerGrader) -> dict[str, Any]:
    """One row for the template."""
    return {
        "origin": row["origin"].rsplit("/", 1)[-1],
        "kind": row["kind"],
        "prompt": cut(
            row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], ensure_ascii=False)
        ),
        "gold": cut(row["gold"]),
        "systems": list(row["scores"]),
        "fields": _fields(row, grader) if isinstance(grader, JsonFields) else [],
        "marks": {name: score.share for name, score in row["scores"].items()},
        "answers": {name: cut(answer) for name, answer in row["answers"].items()},
    }


def _fields(row: Mapping[str, Any], grader: JsonFields) -> Rows:
    """Per gold field what was expected and what each system said."""
    gold = read_object(row["gold"], "strict") or {}
    found = {name: read_object(row["answers"][name], grader.reading) for name in row["scores"]}
    return [
        {
            "name": field,
            "expected": _written(value),
            "systems": {
                name: {"text": _said(found[name], field), "right": score.parts[part_name(field)][0] == 1.0} for name, score in row["scores"].items()
            },
        }
        for field, value in gold.items()
    ]  # fmt: skip


def _said(found: Mapping[str, Any] | None, field: str) -> str:
    """A field of an answer, or why there is none."""
    return "no JSON" if found is None else _written(found[field]) if field in found else "missing"


def _written(value: Any) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 200)


def cut(text: str, longest: int = LONGEST) -> str:
    """A text, its end left out if it is very long."""
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} more characters)"
