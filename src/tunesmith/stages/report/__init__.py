"""The run's report: one HTML file, complete in itself, from whatever the run folder holds so far."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from tunesmith.base import Run
from tunesmith.base.files import write_atomic

from . import account, search, words
from .answers import KINDS, shown, unjudged
from .course import course
from .source import Source
from .verdict import strongest, verdict

FILTERS = ("number", "signed", "span", "signed_span", "p_value", "duration", "size", "millions", "plain")
STANDS = {
    "failed": "failed",
    "interrupted": "was interrupted",
    "running": "is running, or was cut off",
    "missing": "has not been started",
}
"""What is said of a stage in a state."""
NEXT = {
    "interrupted": " Run the same command again to go on from there.",
    "running": " The report shows what is there so far.",
    "missing": " The report shows what is there so far.",
}
"""What is said after it."""


def write(run: Run) -> Path:
    """Write `report.html` into the run folder; a run that is not finished, failed or was not promoted gets one too."""
    path = run.path / "report.html"
    page = environment().get_template("page.html.j2").render(facts(Source(run)))
    write_atomic(
        path, page.encode("utf-8", "replace").decode("utf-8")
    )  # half a surrogate pair, which JSON may hold, cannot be written
    return path


def facts(source: Source) -> dict[str, Any]:
    """Everything that the page shows, None for what is not there yet."""
    result, trained = verdict(source), course(source)
    return {
        "name": source.run.path.resolve().name,
        "result": result,
        "status": _status(source, trained),
        "damaged": source.damaged,
        "outdated": source.outdated,
        "course": trained,
        "searched": search.searched(source),
        "shown": shown(source, _before(result)),
        "unjudged": unjudged(source.artifacts["evaluate"]) if result else None,
        "kinds": KINDS,
        "data": account.data(source),
        "method": account.method(source),
        "model": account.model(source),
        "pruned": account.pruned(source),
        "proofs": account.proofs(source),
        "lineage": account.lineage(source),
        "cost": account.cost(source),
        "monitored": source.artifacts["monitor"].metrics if "monitor" in source.artifacts else None,
    }


def _before(result: dict[str, Any] | None) -> str | None:
    """The untuned model at its best: asked as it is or with examples, whichever scored higher."""
    if result is None:
        return None
    block = result["board"]["graders"][result["kind"]]
    systems = {
        name: found
        for name, found in block["systems"].items()
        if name in ("base", "few-shot", "prompted", result["subject"])
    }
    return strongest({**block, "systems": systems}, result["subject"])


def _status(source: Source, trained: dict[str, Any] | None) -> dict[str, str] | None:
    """What keeps the run from being complete, the earliest stage first; None if nothing does."""
    asked = source.recipe.get("evaluate", {}).get("prompted", False)  # else a prompt was looked for beside the run
    for stage in source.stages:
        if stage == "prompt" and not asked:
            continue
        waits = stage in ("prune", "deploy", "monitor")  # for who asks for it, for the gate, and for requests
        state = source.states.get(stage, {"state": "done" if waits else "missing"})
        if state["state"] != "done":
            under_way = trained if stage == "finetune" and trained and not trained["finished"] else None
            progress = f" {under_way['done']:,} of {under_way['planned']:,} steps are done." if under_way else ""
            who, shown = f"Stage {stage}", ""
            if stage in source.retried:
                who = f"A later attempt at stage {stage}"
                shown = f" Shown is {source.artifacts[stage].path.name}, which was finished before."
            text = f"{who} {STANDS[state['state']]}.{progress}{shown}{NEXT.get(state['state'], '')}"
            error = state["error"].partition("\n")[0] if state["state"] == "failed" else ""
            return {"state": state["state"], "text": text, "error": error}
    return None


def environment() -> jinja2.Environment:
    folder = files(__name__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update({name: getattr(words, name) for name in FILTERS})
    return environment
