"""A data curve in words: tables to publish, and for the terminal."""

from collections.abc import Iterator
from itertools import compress
from typing import Any

from tunesmith.grading import HEADLINE

from ..headline import decimals, spoken

HEADS = ("rows", "steps", "trainings", "score", "against base", "SVM", "against SVM", "flag")
FLAGS = {"worse": "worse than base", "below": "below base, not shown", "": ""}
MOST_PARTS = 60
"""Most figures in the table of parts."""


def markdown(found: dict[str, Any]) -> str:
    """The curve as tables to publish."""
    head = headline(found)
    lines = [
        f"# Data curve: {found['name']}", "",
        f"{head['grader']}, {head['unit']}; {found['rows']:,} test rows, the same at every size; in brackets 95 % intervals over {over(found)}.",
        f"Each training: {found['schedule']}. {drawn(found)}", "",
        *table(found), "",
        *(f"* {line}" for line in beside(found)), "",
        "## What more rows would bring", "", *(f"* {line}" for line in sentences(found)), "",
        "## Every figure", "", *_parts(found), "",
    ]  # fmt: skip
    return "\n".join(lines)


def over(found: dict[str, Any]) -> str:
    """What intervals are over."""
    if any(len(each["runs"]) > 1 for each in found["sizes"]):
        return "test rows and trainings, of which all sizes tell together how far they lie apart"
    return "test rows. One training of each size says nothing of how another seed would have done"


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The first grader's first figure."""
    first: dict[str, Any] = found["figures"][0]
    return first


def drawn(found: dict[str, Any]) -> str:
    """How rows are chosen."""
    by = f", each class of {found['stratified']} in proportion" if found["stratified"] else ""
    whole = "; of all rows there are, all draw the same" if found["sizes"][-1]["size"] == found["labelled"] else ""
    return f"A smaller size's rows are among a larger one's{by}; another seed draws other rows{whole}."


def table(found: dict[str, Any]) -> Iterator[str]:
    """The headline at each size, in Markdown."""
    heads, lines = rows(found)
    yield _row(heads)
    yield _row(["---" if head == "flag" else "---:" for head in heads])
    yield from map(_row, lines)


def rows(found: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The headline at each size: what the columns are called, and their cells; a column with nothing in it is left out."""
    lines = list(_cells(found))
    filled = [any(cells) for cells in zip(*lines, strict=True)]
    return tuple(compress(HEADS, filled)), [tuple(compress(line, filled)) for line in lines]


def _cells(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    head = headline(found)
    digits = decimals(head)
    steps = {each["size"]: sorted({run["steps"] for run in each["runs"]}) for each in found["sizes"]}
    svm = {point["size"]: spoken(point, digits) for point in head["systems"].get("svm", ())}
    for point in head["points"]:
        size = point["size"]
        taken = steps.get(size, [0])
        span = f"{taken[0]:,}" if len(taken) == 1 else f"{taken[0]:,} to {taken[-1]:,}"
        base, rival = (
            spoken(point["against"][name], digits, "+") if name in point["against"] else "" for name in ("base", "svm")
        )
        times = str(len(point["seeds"])) if size else "base"
        yield f"{size:,}", span, times, spoken(point, digits), base, svm.get(size, ""), rival, FLAGS[point["flag"]]


def beside(found: dict[str, Any]) -> Iterator[str]:
    """What stands beside the curve."""
    systems, digits = headline(found)["systems"], decimals(headline(found))
    if "few-shot" in systems:
        yield f"few-shot: {spoken(systems['few-shot'], digits)}"
    if "majority" in systems:
        yield f"majority class, of {systems['majority'][-1]['size']:,} rows: {spoken(systems['majority'][-1], digits)}"
    worse = [f"{point['size']:,}" for point in headline(found)["points"] if point["flag"] == "worse"]
    if worse:
        yield f"**worse than the base model with {', '.join(worse)} rows**"


def sentences(found: dict[str, Any]) -> Iterator[str]:
    """What the fitted curve foretells, or why it does not."""
    told = found["forecast"]
    if "reason" in told:
        yield told["reason"]
        return
    asked, unit = (found["sizes"][0]["size"], told["asked_up_to"]), told["unit"]
    errors = told["errors"] or {}
    off = "; ".join(f"{name} {error:.2f}" for name, error in errors.items())
    yield f"form: {told['form']}" + (
        f"; root mean square of what each form is off at sizes held out: {off}"
        if off
        else "; too few sizes to choose by"
    )
    for each in told["at"]:
        yield f"{each['times']} times as many ({each['rows']:,} rows): {spoken(each, decimals(told))}{_paid(each)}"
    if told["target"]:
        yield f"to reach {told['target']['score']:g} {unit}: {_span(told['target'], asked)}{_paid(told['target'])}"
    least = told["enough"]
    yield f"past {_span(least, asked)} another doubling gains less than {least['least_gain']:g}{_paid(least)}"
    held = told["calibration"]
    if held["of"]:
        yield f"checked: of {held['of']} scores foretold from smaller sizes alone, the 95 % band held {held['held']}"


def gains(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Parts by what the last rows brought them, the most first."""
    first = headline(found)
    sign = 1 if first["better"] == "higher" else -1
    parts = [
        each
        for each in found["figures"]
        if each["grader"] == first["grader"] and not each["summary"] and each["gained"] is not None
    ]
    return sorted(parts, key=lambda each: -sign * each["gained"]["value"])


def name_of(figure: dict[str, Any]) -> str:
    """What a figure is called."""
    return f"{figure['grader']}, {figure['unit']}" if figure["name"] == HEADLINE else figure["name"]


def _parts(found: dict[str, Any]) -> Iterator[str]:
    sizes = [point["size"] for point in headline(found)["points"]]
    gained = next((f"from {each['from']:,} to {each['to']:,}" for each in [headline(found)["gained"]] if each), "")
    yield _row(["figure", *(f"{size:,}" for size in sizes), gained])
    yield _row(["---"] + ["---:"] * (len(sizes) + 1))
    for figure in found["figures"][:MOST_PARTS]:
        digits = decimals(figure)
        values = [f"{point['value']:.{digits}f}{'*' * (point['flag'] == 'worse')}" for point in figure["points"]]
        brought = spoken(figure["gained"], digits, "+") if figure["gained"] else ""
        yield _row([name_of(figure), *values, brought])
    if len(found["figures"]) > MOST_PARTS:
        yield f"\n{len(found['figures']) - MOST_PARTS} more are in curve.json."
    yield "\n`*` is worse than the base model, by its 95 % interval. Signatures of graders are in curve.json."


def _span(found: dict[str, Any], asked: tuple[int, int]) -> str:
    """A number of rows with its interval; nothing is known below the smallest size that was asked about, nor above the largest."""
    least, most = asked

    def named(rows: int | None) -> str:
        if rows is None:
            return f"more than {most:,}"
        return f"{rows:,}" if rows > least else f"at most {least:,}"

    return f"{named(found['rows'])} rows ({named(found['low'])} to {named(found['high'])})"


def _paid(found: dict[str, Any]) -> str:
    """What is still to be labelled, and what it costs."""
    if not found["more"]:
        return ""
    return f"; {found['more']:,} more to label" + (f", for {found['cost']:,.2f}" if found["cost"] is not None else "")


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |".replace("\n", " ")
