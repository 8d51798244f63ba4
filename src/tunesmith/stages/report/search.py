"""The search in the report: a table of its trials, and the plots that people look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..search.stage import RESULTS
from ..search.table import lines, names, ranked, summary, written
from .charts import Axis, Panel, Parallel, axis, parallel, scatter
from .source import Source

Results = Mapping[str, Any]
APART = 10
"""How many times as large the largest of some losses may be for an axis by size."""


def searched(source: Source) -> dict[str, Any] | None:
    """Everything that the page shows of a search; None where there were no trials."""
    found = source.json("search", RESULTS)
    if found is None:
        return None
    share, called = f"{found['rungs'][0]:g}", names(found["space"])
    headings, *rows = lines(found)
    scored = [trial for trial in found["trials"] if share in trial["scores"]]
    across = {path: _axis(found, path) for path in called if any(_drawn(found, path, trial) for trial in scored)}
    return {
        "sentences": list(summary(found)),
        "headings": headings,
        "lines": [{"cells": row, "winner": row[0] == str(found["winner"])} for row in rows],
        "metric": found["metric"],
        "lower_is_better": found["lower_is_better"],
        "share": _percent(share),
        "history": _history(found, scored, share) if scored else None,
        "early": [early(found, mark) for mark in _early_marks(found)],
        "slices": [_slice(found, scored, share, path, across[path]) for path in across],
        "parallel": _parallel(found, scored, share, across) if len(scored) > 1 else None,
        "importance": {called[path]: value for path, value in found["importance"].items()},
    }


def _percent(mark: str) -> str:
    return f"{100 * float(mark):g} %"


def _name(trial: Mapping[str, Any]) -> str:
    return f"trial {trial['number']}"


def _winner(found: Results) -> str:
    return f"trial {found['winner']}"


def _history(found: Results, scored: list[dict[str, Any]], share: str) -> Panel:
    """Scores in the order of trials, and the best so far."""
    better = min if found["lower_is_better"] else max
    line: list[tuple[float, float]] = []
    for trial in scored:
        best = better(trial["scores"][share], line[-1][1]) if line else trial["scores"][share]
        line += [(trial["number"], line[-1][1])] if line else []
        line.append((trial["number"], best))
    points = [(trial["number"], trial["scores"][share], _name(trial)) for trial in scored]
    where = axis([0, max(1, len(found["trials"]) - 1)])
    log = _by_ratios(found, [value for _, value, _ in points])
    return scatter(f"{found['metric']} at {_percent(share)}, by trial", points, where, _winner(found), line, log)


def _early_marks(found: Results) -> list[str]:
    """Shares that can be held against the end."""
    ended = [trial["scores"] for trial in found["trials"] if "1" in trial["scores"]]
    if len(ended) < 2:
        return []
    return sorted((mark for mark in ended[0] if mark != "1" and all(mark in each for each in ended)), key=float)


def early(found: Results, mark: str) -> Panel:
    """Scores on the way against scores at the end."""
    points = [
        (trial["scores"][mark], trial["scores"]["1"], _name(trial))
        for trial in found["trials"]
        if "1" in trial["scores"]
    ]
    before, after = [point for point, *_ in points], [value for _, value, _ in points]
    where = axis(before, log=_by_ratios(found, before))
    title = f"{found['metric']} at the end, by that at {_percent(mark)}"
    return scatter(title, points, where, _winner(found), log=_by_ratios(found, after))


def _by_ratios(found: Results, values: Sequence[float]) -> bool:
    """Whether scores are placed by their logarithm: of losses one that is far off would press all others together."""
    return bool(values) and found["lower_is_better"] and 0 < APART * min(values) < max(values)


def _axis(found: Results, path: str) -> Axis:
    """An axis of all that a setting was."""
    space = found["space"][path]
    seen = [
        trial["settings"][path] for trial in found["trials"] if path in trial["settings"] and _drawn(found, path, trial)
    ]
    if "values" not in space and not any(isinstance(value, str) for value in seen):
        return axis([*seen, space["low"], space["high"]], log=space.get("log", False))
    known = [written({"settings": {path: value}}, path, space) for value in (*space.get("values", ()), *seen)]
    placed = axis(seen, names=list(dict.fromkeys(known)))
    return Axis(lambda value: placed.place(written({"settings": {path: value}}, path, space)), placed.ticks)


def _drawn(found: Results, path: str, trial: dict[str, Any]) -> bool:
    """Whether a trial's value has a place on the axis: on one of numbers null has none, nor has 0 where it goes by ratios."""
    space, value = found["space"][path], trial["settings"].get(path)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return path in trial["settings"] and (
        "values" in space or isinstance(value, str) or (number and (value > 0 or not space.get("log")))
    )


def _slice(found: Results, scored: list[dict[str, Any]], share: str, path: str, across: Axis) -> Panel:
    """Scores by one setting."""
    points = [
        (trial["settings"][path], trial["scores"][share], _name(trial))
        for trial in scored
        if _drawn(found, path, trial)
    ]
    log = _by_ratios(found, [value for _, value, _ in points])
    return scatter(names(found["space"])[path], points, across, _winner(found), log=log)


def _parallel(found: Results, scored: list[dict[str, Any]], share: str, across: Mapping[str, Axis]) -> Parallel:
    """All settings and the score, a line for each trial."""
    called, score = names(found["space"]), f"{found['metric']} at {_percent(share)}"
    axes = {called[path]: each for path, each in across.items()} | {
        score: axis([trial["scores"][share] for trial in scored])
    }
    threads = {
        _name(trial): {**{called[path]: trial["settings"][path] for path in across}, score: trial["scores"][share]}
        for trial in ranked(found)
        if share in trial["scores"] and all(_drawn(found, path, trial) for path in across)
    }
    return parallel(axes, threads, _winner(found))
