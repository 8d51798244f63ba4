"""The stage: trials without end until there are enough, then what they came to, and the winner's weights for finetune to hand on."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, ModelError, Output, Stage
from tunesmith.base.files import clear, digest, known_sha256, write_json

from ..finetune import WINNER
from ..recipe import Recipe
from . import proposals
from .proposals import Known
from .proposals import require as require
from .settings import AUDITED, Search
from .space import space_of, told
from .study import Study
from .trial import Trial
from .trust import trust

FOLDER = "trials"
"""Where, in the run folder, trials are."""
RESULTS = "search.json"
TAUGHT = ("model", "precision", "seed", "initialise", "finetune")
"""What of a recipe a trial depends on."""


def given(spec: Search, initialised: Artifact, *, out: Output) -> None:
    """Without trials: write `settings.json`, which changes nothing."""
    write_json(out / "settings.json", {"trials": spec.trials, "overrides": {}})
    out.metrics["trials"] = spec.trials


STAGE = Stage("search", 1, given)


def taught(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe a search depends on, beside the search itself."""
    tree = recipe.model_dump(mode="json")
    return {name: tree[name] for name in TAUGHT}


def stage_for(recipe: Recipe, run: Path, inputs: Sequence[Path], work: Callable[[Study], None] = Study.work) -> Stage:
    """The stage of a search with trials, which are kept in the run's folder from one search to the next.

    Args:
        recipe: as given.
        run: the run's folder.
        inputs: the user's files that trainings read.
        work: trains until nothing is left to train, here or elsewhere.
    """
    return replace(
        STAGE,
        version=4,
        function=partial(search, given=recipe, home=run / FOLDER, inputs=tuple(inputs), work=work),
    )


def search(
    spec: Search, prepared: Artifact, *, out: Output, recipe: dict[str, Any], made_by: int, given: Recipe, home: Path,
    inputs: Sequence[Path], work: Callable[[Study], None],
) -> None:  # fmt: skip
    """Try settings; write `search.json` (every trial and what it came to), `settings.json` (the winner's) and `winner/` (what it learnt).

    `made_by` is the version of the training stage: trials of another one are not handed on.

    Raises:
        Interrupted: the next call goes on from where the trials are.
        ModelError: no trial came to its end.
        MachineError: a worker died.
    """
    lasting = spec.model_dump(mode="json", exclude={"trials", "keep"})
    key = digest([recipe, lasting, made_by, prepared.id, [known_sha256(path) for path in inputs]])[:12]
    study = Study(home / key, given, prepared, out.events)
    work(study)
    results = told_of(study)
    write_json(out / RESULTS, results)
    winner = next(trial for trial in study.trials() if trial.number == results["winner"])
    write_json(
        out / "settings.json",
        {
            "trials": spec.trials,
            "settings": winner.settings if winner.number else {},
            "overrides": results["overrides"],
            "activation_checkpointing": winner.spec["activation_checkpointing"],
        },
    )
    _hand_on(winner, study.whole(winner), out / WINNER)
    out.metrics.update(
        {
            name: results[name]
            for name in ("trials_tried", "winner", "overrides", "metric", "gain", "tokens", "seconds", "states")
        }
    )


def _hand_on(winner: Trial, made: Artifact, folder: Path) -> None:
    """What the winner learnt, with its proof, its figures and the events of its steps."""
    clear(folder)
    shutil.copytree(made / "adapter", folder / "adapter")
    shutil.copy(made / "proof.json", folder / "proof.json")
    write_json(folder / "metrics.json", made.metrics["training"])
    told_in = ("step", "validation", "classes")
    lines = [json.dumps(event, ensure_ascii=False) for event in winner.run.events.read() if event["event"] in told_in]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def told_of(study: Study) -> dict[str, Any]:
    """What the trials came to.

    Returns:
        A JSON value: how it was searched, as `_asked`; `metric` and `lower_is_better`; `trials`, each as `_entry`; `winner`, the number of the best
        at the end, with its `overrides` of the recipe; `gain` over the recipe's own settings at the last share that both reached; `importance`;
        `trust` by share if audited, and `chosen_early`, whom the search would have chosen without the audit; `tokens` and `seconds` of all trials;
        `states`, how many trials of each.

    Raises:
        ModelError: no trial came to its end.
    """
    trials, rungs, spec = study.trials(), study.search.rungs, study.search
    entries, last = [_entry(trial, rungs) for trial in trials], len(rungs) - 1
    ended = study.ranked(study.sent(trials, last), last)  # not those that an earlier search sent there, which kept more
    if not ended:
        reasons = sorted({trial.refused["reason"] for trial in trials if trial.refused})
        raise ModelError(
            f"search: no trial came to its end: {'; '.join(reasons)}; mend that, delete {study.folder} and run again"
        )
    winner, lower = ended[0], study.lower_is_better(trials)
    known = [Known(trial.settings, trial.score(rungs[0])) for trial in trials]
    by_early = [trial for trial in study.ranked(trials, 0) if not trial.refused][: spec.keep]
    return {
        **_asked(study),
        "metric": (winner.metrics(1.0) or {})["metric"],
        "lower_is_better": lower,
        "trials": entries,
        "trials_tried": len(trials),
        "winner": winner.number,
        "overrides": told(study.recipe, winner.settings) if winner.number else {},
        "gain": _gain(entries, winner.number, lower),
        "chosen_early": next((trial.number for trial in ended if trial in by_early), None) if spec.audit else None,
        "importance": proposals.importance(space_of(study.recipe), known, lower),
        "trust": _trusted(entries, lower, sorted({*AUDITED, spec.early})) if spec.audit else None,
        "tokens": sum(entry["tokens"] for entry in entries),
        "seconds": round(sum(entry["seconds"] for entry in entries), 1),
        "states": {state: [entry["state"] for entry in entries].count(state) for state in ("finished", "stopped", "infeasible", "failed")},
    }  # fmt: skip


def _asked(study: Study) -> dict[str, Any]:
    """How it was searched: `folder`, where in the run the trials are, `scheme`, `sampler`, `rungs`, `audit`, `keep` and `space`."""
    spec, space = study.search, space_of(study.recipe)
    return {
        "folder": f"{FOLDER}/{study.folder.name}",
        "scheme": spec.scheme,
        "sampler": spec.sampler,
        "rungs": spec.rungs,
        "audit": spec.audit,
        "keep": spec.keep,
        "space": {path: values.model_dump(mode="json", exclude_defaults=True) for path, values in space.items()},
    }


def _entry(trial: Trial, rungs: Sequence[float]) -> dict[str, Any]:
    """A trial: `number`, `by` whom it was proposed, `settings`, `state`, `reason`, `scores` by share, `steps`, its cost in `tokens` and
    `seconds`, and whether it was `warming` up still when it was scored early."""
    parts = [found for until in rungs if (found := trial.metrics(until)) is not None]
    refused = trial.refused or {}
    whole = trial.metrics(1.0) is not None
    last = parts[-1]["training"] if parts else {}
    steps = {event["step"]: event for event in trial.run.events.read("step")}.values()  # also of what came to nothing
    return {
        "number": trial.number,
        "by": trial.facts["by"],
        "settings": trial.settings,
        "state": refused.get("state", "finished" if whole else "stopped"),
        "reason": refused.get("reason"),
        "scores": {mark: score for part in parts for mark, score in part["scores"].items()},
        "steps": last.get("steps", 0),
        "planned_steps": last.get("planned_steps"),
        "tokens": sum(event["tokens"] for event in steps),
        "seconds": round(sum(event["seconds"] for event in steps), 1),
        "warming": trial.warming(rungs[0]),
    }


def _gain(entries: Sequence[dict[str, Any]], winner: int, lower_is_better: bool) -> dict[str, Any] | None:
    """By how much the winner is better than the recipe's own settings on validation rows, where both were scored; above 0 is better."""
    scores = {entry["number"]: entry["scores"] for entry in entries}
    shared = [mark for mark in scores[winner] if mark in scores.get(0, {})]
    if not shared:
        return None
    share = max(shared, key=float)
    own, best = scores[0][share], scores[winner][share]
    return {
        "share": float(share),
        "own": own,
        "winner": best,
        "better_by": own - best if lower_is_better else best - own,
    }


def _trusted(entries: Sequence[dict[str, Any]], lower_is_better: bool, marks: Sequence[float]) -> dict[str, Any]:
    """Per share how its scores agree with those at the end, where what failed after it is the worst."""
    worst = math.inf if lower_is_better else -math.inf
    ended = [
        (entry["scores"], entry["scores"].get("1", worst))
        for entry in entries
        if "1" in entry["scores"] or entry["state"] == "failed"
    ]
    found = {}
    for mark in (f"{mark:g}" for mark in marks):
        known = [(early[mark], final) for early, final in ended if mark in early]
        found[mark] = trust([early for early, _ in known], [final for _, final in known], lower_is_better)
    return found
