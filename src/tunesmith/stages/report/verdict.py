"""What the evaluation says: one sentence, the forest plots, and tables of every figure with its interval."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.grading.scoreboard import SUBJECT

from ..headline import decimals
from . import words
from .charts import forest
from .source import Source

Block = Mapping[str, Any]

SPOKEN = {
    "base": "the base model",
    "few-shot": "few-shot prompting",
    "prompted": "the best prompt",
    "majority": "the majority class",
    "svm": "the SVM",
    "own": "the run's own model",
}
"""What systems are called in a sentence."""


@dataclass(frozen=True)
class Table:
    """Systems side by side, a line for each part or slice."""

    systems: list[str]
    lines: list[dict[str, Any]]
    """Per line its `name`, `note`, `n`, `systems` (figures), `best` (names), `percent` and `digits`."""


def verdict(source: Source) -> dict[str, Any] | None:
    """Everything about the evaluation; None if there is none yet."""
    results = source.json("evaluate", "results.json")
    if results is None:
        return None
    board, prompting = results["task"], results.get("prompting")
    kind, block = next((kind, block) for kind, block in board["graders"].items() if block["headline"])
    subject = board["subject"]
    rival = strongest(block, subject)
    return {
        "board": board,
        "kind": kind,
        "unit": block["unit"],
        "digits": decimals(block),
        "subject": subject,
        "figure": block["systems"][subject],
        "rival": rival,
        "difference": difference(block, subject, rival),
        "standing": standing(block, subject, rival),
        "sentence": sentence(block, subject, rival),
        "gate": results["gate"],
        "notes": results["notes"],
        "systems": forest(block["systems"], subject, whole=_percent(block)),
        "gaps": forest(
            {name.removeprefix(f"{subject} - "): found for name, found in block["differences"].items()}, zero=True
        ),
        "parts": table(block, "parts"),
        "slices": table(block, "slices"),
        "every": every_grader(board),
        "graders": [_grader(name, found, subject) for name, found in board["graders"].items()],
        "general": general_of(results["general"]),
        "prompting": prompting and {**prompting, "digits": decimals(prompting)},
        "retrieval": results.get("retrieval"),
        "canaries": results.get("canaries"),
    }


def strongest(block: Block, subject: str) -> str | None:
    """The best of the other systems that the subject was compared with."""
    lower = block["better"] == "lower"
    others = {
        name: found["value"]
        for name, found in block["systems"].items()
        if f"{subject} - {name}" in block["differences"]
    }
    return max(others, key=lambda name: -others[name] if lower else others[name], default=None)


def difference(block: Block, subject: str, rival: str | None) -> dict[str, Any] | None:
    """The subject's difference from a rival."""
    found: dict[str, Any] | None = block["differences"].get(f"{subject} - {rival}")
    return found


def standing(block: Block, subject: str, rival: str | None) -> str:
    """`better`, `worse`, or `unclear` where the interval of the difference holds zero."""
    found = difference(block, subject, rival)
    if found is None or None in (found["low"], found["high"]) or not math.isfinite(found["value"]):
        return "unclear"
    if found["low"] <= 0 <= found["high"]:
        return "unclear"
    return "better" if (found["low"] > 0) == (block["better"] == "higher") else "worse"


def sentence(block: Block, subject: str, rival: str | None) -> str:
    """The result in one sentence, figure and interval in it."""
    places = decimals(block)
    value = words.number(block["systems"][subject]["value"], places)
    thing = block["unit"].removeprefix("% of ")
    reached = (
        f"{subject.capitalize()} gets {value} % of the {thing} right"
        if _percent(block)
        else f"{subject.capitalize()} reaches {value} {block['unit']}"
    )
    found = difference(block, subject, rival)
    if found is None or rival is None:
        return f"{reached} (95 % interval {words.span(block['systems'][subject], places)})."
    apart = words.number(abs(found["value"]), places)
    compared = (
        f"{apart} points {'more' if found['value'] >= 0 else 'fewer'}"
        if _percent(block)
        else f"{apart} {'more' if found['value'] >= 0 else 'less'}"
    )
    doubt = ", which may be chance" if standing(block, subject, rival) == "unclear" else ""
    return f"{reached}, {compared} than {SPOKEN.get(rival, rival)}{doubt} (95 % interval {words.signed_span(found, places)})."


def _percent(block: Block) -> bool:
    return bool(block["unit"].startswith("%"))


def table(block: Block, section: str) -> Table:
    """The parts or the slices of a grader."""
    return Table(
        _ordered(block["systems"]),
        [_line(name, found["n"], found["systems"], block) for name, found in block[section].items()],
    )


def every_grader(board: Block) -> Table:
    """The graders' own figures."""
    lines = [
        _line(name, next(iter(block["systems"].values()))["n"], block["systems"], block, block["unit"] + ("; lower is better" if block["better"] == "lower" else ""))
        for name, block in board["graders"].items()
    ]  # fmt: skip
    return Table(_ordered(board["systems"]), lines)


def _ordered(systems: Iterable[str]) -> list[str]:
    """The subject first: it must be in sight on a small screen too."""
    return sorted(systems, key=lambda name: name != SUBJECT)


def _line(name: str, rows: int, systems: Mapping[str, Any], block: Block, note: str = "") -> dict[str, Any]:
    values = [found["value"] for found in systems.values() if not math.isnan(found["value"])]
    top = (min if block["better"] == "lower" else max)(values, default=None)
    best = [system for system, found in systems.items() if found["value"] == top]
    return {
        "name": name, "note": note, "n": rows, "systems": systems, "percent": _percent(block), "digits": decimals(block),
        "best": best if len(best) < len(systems) else [],
    }  # fmt: skip


def _grader(name: str, block: Block, subject: str) -> dict[str, Any]:
    """One grader's differences."""
    gaps = [
        {"rival": rival, **found, "standing": standing(block, subject, rival)}
        for rival in block["systems"]
        if (found := difference(block, subject, rival)) is not None
    ]
    return {"name": name, "digits": decimals(block), "gaps": gaps}


def general_of(board: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What tuning did to rows of other tasks."""
    if board is None:
        return None
    block = board["graders"]["perplexity"]
    return {
        "rows": board["rows"],
        "systems": block["systems"],
        "change": block["differences"].get(f"{board['subject']} - base"),
    }
