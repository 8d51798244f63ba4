"""The trials of a search as text: a line for each, the best first, and in sentences what to make of them."""

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, Any]


def names(paths: Any) -> dict[str, str]:
    """Of each setting the shortest end of its path that no other has."""
    paths = list(paths)
    found = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[place:]) for place in range(len(parts) - 1, -1, -1)]
        found[path] = next(
            end for end in ends if sum(other == end or other.endswith(f".{end}") for other in paths) == 1
        )
    return found


def heading(found: Results) -> str:
    """What was searched, and by what."""
    return f"{found['trials_tried']} trials, by {found['sampler']}; {found['metric']} on validation rows"


def ranked(found: Results) -> list[dict[str, Any]]:
    """Trials, those that came farthest first, and among these the best."""
    sign = 1 if found["lower_is_better"] else -1

    def place(trial: dict[str, Any]) -> tuple[float, float, int]:
        reached = max(map(float, trial["scores"]), default=0.0)
        return -reached, sign * trial["scores"].get(f"{reached:g}", 0.0), trial["number"]

    return sorted(found["trials"], key=place)


def shares(found: Results) -> list[str]:
    """Shares of a training at which any trial has a score, in order."""
    return sorted({mark for trial in found["trials"] for mark in trial["scores"]}, key=float)


def lines(found: Results, together: bool = False) -> Iterator[list[str]]:
    """The table's headings, then a line for each trial; each setting in a column of its own, or, where there is little room, all in one."""
    marks, called = shares(found), names(found["space"])
    columns = ["settings"] if together else [*called.values()]
    yield ["trial", *(f"{100 * float(mark):g} %" for mark in marks), "state", *columns, "tokens", "seconds"]
    for trial in ranked(found):
        scores = [f"{trial['scores'][mark]:.4g}" if mark in trial["scores"] else "" for mark in marks]
        state = trial["state"] if trial["number"] != found["winner"] else "winner"
        settings = [written(trial, path, found["space"][path]) for path in called]
        if together:
            pairs = zip(called.values(), settings, strict=True)
            settings = [", ".join(f"{name} {value}" for name, value in pairs if value)]
        yield [str(trial["number"]), *scores, state, *settings, f"{trial['tokens']:,}", f"{trial['seconds']:,.0f}"]


def written(trial: Mapping[str, Any], path: str, values: Mapping[str, Any]) -> str:
    """A setting for people; one that multiplies another as a multiple."""
    value = trial["settings"].get(path)
    if value is None:
        return ""
    text = (
        f"{value:.3g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
    return f"{text} × {values['times'].rpartition('.')[2]}" if values.get("times") else text


def summary(found: Results) -> Iterator[str]:
    """What the search came to, in sentences."""
    gain = found["gain"]
    if found["winner"] == 0:
        yield "No trial was better than the recipe's own settings, which go on to finetune."
    elif gain is None:
        yield f"Trial {found['winner']} won. The recipe's own settings have no score to compare with."
    else:
        where = (
            "at the end"
            if gain["share"] == 1
            else f"at {100 * gain['share']:g} % of training, the last share both reached"
        )
        yield (
            f"Trial {found['winner']} won: {found['metric']} {gain['winner']:.4g} against {gain['own']:.4g} of the recipe's own settings {where}. "
            "Both are on the rows that chose it, so the test split will say less."
        )
        if gain["better_by"] < 0:
            yield "The recipe's own settings are better, and were not among those that this search sends to the end: raise search.keep, or set search.trials=0."
    for trial in found["trials"]:
        if trial["reason"]:
            yield f"Trial {trial['number']} was {trial['state']}: {trial['reason']}."
    if early := [str(trial["number"]) for trial in found["trials"] if trial.get("warming")]:
        yield (
            f"Still warming up when scored at {100 * found['rungs'][0]:g} %, which says little of the end: {', '.join(early)}. "
            "Make finetune.schedule.warmup shorter, or a share of all steps, or raise search.early."
        )
    if found["trust"] is None:
        yield "Whether the early score can be trusted is not known here; search.audit trains all trials to the end and says so."
    for mark, each in (found["trust"] or {}).items():
        yield trusted(mark, each)


def trusted(mark: str, each: Mapping[str, Any]) -> str:
    """What an audit says of a share."""
    said = f"At {100 * float(mark):g} %: {each['stayed']} of the best {each['top']} stayed there at the end; chance alone keeps {each['chance']:.1f} (p {each['p']:.2g})"
    for name in ("spearman", "kendall"):
        if each[name]:
            said += (
                f"; {name.capitalize()} {each[name]['value']:.2f} ({each[name]['low']:.2f} to {each[name]['high']:.2f})"
            )
    return f"{said}."
