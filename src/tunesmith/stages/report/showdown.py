"""The page of a showdown: quality, cost, memory and distance of every road, and what each answers."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunesmith.base import Run
from tunesmith.base.files import read_json, write_atomic

from ..headline import decimals
from ..showdown.settings import START
from . import environment, words
from .answers import card, rows_of, the_grader, unjudged
from .charts import forest
from .verdict import difference, every_grader, sentence, standing

STANDING = {"better": "✓ better", "worse": "✗ worse", "unclear": "– not shown"}


def write(run: Run) -> Path:
    """Write `report.html` and, for programs, `results.json` into a showdown's folder.

    Raises:
        ArtifactError: the roads have not been compared yet.
    """
    compared = run.artifact("compare")
    results, spec = read_json(compared / "results.json"), compared.manifest["spec"]
    start = Run(run.path / START)
    rows = rows_of(start.artifact("prepare"), compared)
    path = run.path / "report.html"
    found = {**facts(results), "name": run.path.resolve().name, "created": words.moment(compared.manifest["created"])}
    evaluated = start.artifact("evaluate")
    found |= {"cards": _cards(rows, the_grader(evaluated), spec["shown"]), "unjudged": unjudged(evaluated)}
    found["parents"] = compared.manifest["parents"]
    page = environment().get_template("showdown.html.j2").render(found)
    write_atomic(path, page.encode("utf-8", "replace").decode("utf-8"))
    write_atomic(run.path / "results.json", (compared / "results.json").read_text(encoding="utf-8"))
    return path


def facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page shows of the results."""
    board, against, costs = results["task"], results["against"], results["cost"]
    kind, block = next((kind, block) for kind, block in board["graders"].items() if block["headline"])
    roads = list(results["divergence"])
    ranked = sorted(roads, key=lambda name: block["systems"][name]["value"], reverse=block["better"] == "higher")
    best = ranked[0]
    gaps = {name: found for name in roads if (found := difference(block, name, against))}
    return {
        "sentence": sentence(block, best, None if best == against else against),
        "kind": kind, "unit": block["unit"], "digits": decimals(block), "against": against, "best": best, "rows": board["rows"], "roads": roads,
        "systems": forest(block["systems"], best, whole=block["unit"].startswith("%")),
        "gaps": forest(gaps, best, zero=True),
        "drifts": forest(results["divergence"], best, zero=True),
        "lines": [_line(name, block, results, against) for name in roads],
        "every": every_grader(board),
        "start": costs[START],
        "budget": results["budget"],
        "least": min(costs[name]["passes"] for name in roads) / results["budget"],
        "most": max(costs[name]["passes"] for name in roads) / results["budget"],
        "about": {name: _settings(found) for name, found in results["about"].items()},
        "environment": results["environment"],
    }  # fmt: skip


def _line(name: str, block: Mapping[str, Any], results: Mapping[str, Any], against: str) -> dict[str, Any]:
    """A road in the table."""
    gap = difference(block, name, against)
    how = standing(block, name, against) if gap else "unclear"
    return {
        "name": name, "figure": block["systems"][name], "gap": gap, "standing": how, "said": STANDING[how], **results["cost"][name],
        "share": results["cost"][name]["passes"] / results["budget"], "drift": results["divergence"][name],
    }  # fmt: skip


def _settings(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, words.plain(value)) for name, value in found.items() if value not in (None, [])]


def _cards(rows: list[dict[str, Any]], grader: Any, count: int) -> list[dict[str, Any]]:
    """Test rows drawn by a hash of their place, so that nobody picked them, with every system's answer marked."""
    drawn = sorted(rows, key=lambda row: sha256(json.dumps(row["origin"]).encode()).digest())[:count]
    if grader is None:
        return []
    for row in drawn:
        scores = {name: grader.score(answer, row["example"]) for name, answer in row["answers"].items()}
        row |= {"kind": "", "scores": scores}
    return [card(row, grader) for row in drawn]
