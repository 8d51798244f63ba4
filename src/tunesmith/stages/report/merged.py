"""The page of a merged run: what the merged model is worth on the task of every run it is made of, and what became of what each had learnt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.base import Run
from tunesmith.base.files import read_json, write_atomic

from ..headline import decimals
from . import environment, words
from .charts import forest
from .verdict import difference, every_grader, general_of, sentence, standing, strongest

STANDING = {
    "better": ("yes", "better"),
    "worse": ("no", "worse"),
    "unclear": ("muted", "shown to be neither better nor worse"),
}


def write(run: Run) -> Path:
    """Write `report.html` into a merged run's folder.

    Raises:
        ArtifactError: it has not been evaluated yet.
    """
    merged, evaluated = run.artifact("merge"), run.artifact("evaluate")
    results, metrics = read_json(evaluated / "results.json"), merged.metrics
    found = {
        "name": run.path.resolve().name,
        "tasks": [task(name, result) for name, result in results.items()],
        "promote": evaluated.metrics["promote"],
        "reasons": evaluated.metrics["reasons"],
        "method": metrics["method"],
        "weights": list(zip(results, metrics["weights"], strict=True)),
        "settings": settings(merged.manifest["spec"]["method"], metrics),
        "claims": [{**claim, "stage": made.manifest["stage"]} for made in (merged, evaluated) for claim in read_json(made / "proof.json")["claims"]],
        "parents": merged.manifest["parents"],
        "environment": evaluated.manifest["environment"],
        "created": words.moment(evaluated.manifest["created"]),
    }  # fmt: skip
    path = run.path / "report.html"
    page = environment().get_template("merged.html.j2").render(found)
    write_atomic(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def task(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a run's task."""
    board = result["task"]
    kind, block = next((kind, block) for kind, block in board["graders"].items() if block["headline"])
    subject = board["subject"]
    own = difference(block, subject, "own")
    place, said = STANDING[standing(block, subject, "own")]
    return {
        "name": name, "rows": board["rows"], "kind": kind, "unit": block["unit"], "digits": decimals(block), "subject": subject,
        "sentence": sentence(block, subject, "own" if own else strongest(block, subject)),
        "figure": block["systems"][subject], "own": own, "place": place, "said": said,
        "systems": forest(block["systems"], subject, whole=block["unit"].startswith("%")),
        "gaps": forest({rival.removeprefix(f"{subject} - "): found for rival, found in block["differences"].items()}, zero=True),
        "every": every_grader(board), "general": general_of(result["general"]), "gate": result["gate"],
    }  # fmt: skip


def settings(method: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How what was learnt became one, and how much of it the result holds."""
    found = [(name, words.plain(value)) for name, value in method.items()]
    if "kept" in metrics:
        found += [("rank of the result", words.plain(metrics["rank"])), ("of the sum kept", f"{100 * metrics['kept']:.2f} %")]  # fmt: skip
    return found
