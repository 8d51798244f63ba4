"""How training went: loss, learning rate and validation over the steps of the last attempt that did any."""

from typing import Any

from tunesmith.base import Artifact

from .charts import panel
from .source import Source

ByStep = dict[int, dict[str, Any]]
TELLING = {"reward": "Reward of sampled answers by step", "accuracy": "Share of preferences that are right by step"}
"""What says more about a run than its loss, where it is there."""


def course(source: Source) -> dict[str, Any] | None:
    """Panels and the figures in their caption; None before the first step."""
    folder, steps, judged = followed(source)
    if not steps:
        return None
    made = source.artifacts.get("finetune")
    finished = made if made and made.path.name == folder else None
    chosen = chosen_step(finished, judged)
    last = steps[max(steps)]
    planned = last["steps"]
    telling = [name for name in TELLING if name in last]
    curve = {
        name: [(step, found[name]) for step, found in sorted(steps.items())]
        for name in (*telling, "loss", "learning_rate")
    }
    panels = [
        *(panel(TELLING[name], curve[name], last=planned, smooth=True, rule=chosen, floor=False) for name in telling),
        panel("Loss by step", curve["loss"], last=planned, smooth=True, rule=chosen),
        panel("Learning rate by step", curve["learning_rate"], last=planned),
    ]
    if judged:
        metric = next(iter(judged.values()))["metric"]
        points = [(step, found["value"]) for step, found in sorted(judged.items())]
        panels.insert(
            -1, panel(f"Validation by step: {metric}", points, last=planned, dotted=True, rule=chosen, floor=False)
        )
    return {
        "panels": panels,
        "done": last["step"],
        "planned": planned,
        "loss": last["loss"],
        "chosen": chosen,
        "finished": finished is not None,
        **_best(judged, chosen),
    }


def _best(judged: ByStep, chosen: int | None) -> dict[str, Any]:
    found = judged.get(chosen or 0)
    return {
        "metric": found["metric"] if found else None,
        "value": found["value"] if found else None,
        "judgements": len(judged),
    }


def followed(source: Source) -> tuple[str, ByStep, ByStep]:
    """Of the last attempt that did any step its artifact, and step and validation events by step; nothing where none did."""
    found = ((folder, *_events(source, folder)) for folder in source.folders("finetune"))
    return next((each for each in found if each[1]), ("", {}, {}))


def _events(source: Source, folder: str) -> tuple[ByStep, ByStep]:
    """Step and validation events by step. Where a resumed run went back, what it had done beyond that point no longer counts."""
    steps: ByStep = {}
    judged: ByStep = {}
    for event in source.run.events.tagged(artifact=folder).read():
        if event["event"] == "step":
            if event["step"] in steps:
                steps, judged = (
                    {step: kept[step] for step in kept if step < event["step"]} for kept in (steps, judged)
                )
            steps[event["step"]] = event
        elif event["event"] == "validation":
            judged[event["step"]] = event
    return steps, judged


def chosen_step(finished: Artifact | None, judged: ByStep) -> int | None:
    """The step whose weights were kept, or so far are the best; None where nothing was judged."""
    if not judged:
        return None
    if finished:
        return int(finished.metrics["best_step"])
    return max((step for step, found in judged.items() if found["best"]), default=None)
