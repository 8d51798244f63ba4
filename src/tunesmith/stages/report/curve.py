"""The page of a data curve, and its figure: scores over rows on a logarithmic axis, with the band, the classifiers and what stands beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..curve import text
from ..headline import decimals
from . import environment
from .rows_plot import Line, plot
from .standalone import standalone

SMALL = 12
"""Parts that get a plot of their own: those whom the last rows moved most."""
NAMES = {"svm": "SVM", "majority": "majority", "few-shot": "few-shot", "base": "base"}


def page(found: Mapping[str, Any]) -> str:
    """The HTML page, complete in itself."""
    told = dict(found)
    heads, lines = text.rows(told)
    shown = {
        "name": found["name"],
        "rows": found["rows"],
        "unit": text.headline(told)["unit"],
        "kind": text.headline(told)["grader"],
        "digits": decimals(text.headline(told)),
        "whole": drawing(found, text.headline(told), found["forecast"].get("line", ())),
        "heads": heads,
        "lines": lines,
        "beside": [line.replace("**", "") for line in text.beside(told)],
        "sentences": list(text.sentences(told)),
        "schedule": found["schedule"],
        "drawn": text.drawn(told),
        "over": text.over(told),
        "parts": [drawing(found, part) | {"gained": part["gained"]} for part in text.gains(told)[:SMALL]],
        "checked": found["forecast"].get("calibration", {}).get("points", []),
    }
    return environment().get_template("curve.html.j2").render(shown)


def drawing(
    found: Mapping[str, Any], figure: Mapping[str, Any], line: Sequence[Mapping[str, float]] = ()
) -> dict[str, Any]:
    """A figure as a plot."""
    lines = [Line("tuned", figure["points"], "tuned")]
    systems = figure["systems"]
    lines += [Line(NAMES[name], systems[name], name) for name in ("svm", "majority") if name in systems]
    level = {NAMES["base"]: figure["points"][0]["value"]}
    if "few-shot" in systems:
        level[NAMES["few-shot"]] = systems["few-shot"]["value"]
    return {
        "title": text.name_of(dict(figure)),
        "chart": plot(lines, level, line, whole=figure["unit"].startswith("%")),
    }


def figure(found: Mapping[str, Any]) -> str:
    """The headline's plot as an SVG file of its own."""
    drawn = drawing(found, text.headline(dict(found)), found["forecast"].get("line", ()))
    macro = environment().get_template("curve_plot.html.j2").module
    return standalone(str(macro.plot(drawn["chart"])), 760, 400, "plot")  # type: ignore[attr-defined]
