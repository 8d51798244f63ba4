"""Plots of the pages as SVG files of their own, with the pages' colours and in light alone."""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from . import environment
from .charts import Panel

PANEL, TITLE, HEIGHT = 380, 26, 190
"""Width of a panel, and heights of its title and its plot, in pixels."""


def standalone(inner: str, width: int, height: int, classes: str) -> str:
    """An SVG file.

    Args:
        inner: its elements.
        width: in pixels.
        height: in pixels.
        classes: of the whole, whose rules it takes.
    """
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    style = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", style)
    root = style[: style.index("}") + 1].replace("color-scheme:light dark;", "")
    wanted = "|".join(rf"\.{name}" for name in (*classes.split(), "grid"))
    rules = "".join(re.findall(rf"^(?:{wanted}|svg)[^\n]*$", style, flags=re.MULTILINE))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{classes}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif">'
        f'<style>{root}{rules}</style><rect width="{width}" height="{height}" fill="var(--card)"/>{inner}</svg>\n'
    )


def panels(found: Sequence[Panel]) -> str:
    """Scatter plots side by side."""
    macro = environment().get_template("macros.html.j2").module
    inner = ""
    for place, panel in enumerate(found):
        whole = str(macro.curve(panel, "scatter"))  # type: ignore[attr-defined]
        plot = whole[whole.index("<svg") : whole.rindex("</svg>") + len("</svg>")]
        inner += f'<svg x="{place * PANEL}" width="{PANEL}"><text x="12" y="18">{escape(panel.title)}</text><svg y="{TITLE}">{plot}</svg></svg>'
    return standalone(inner, PANEL * len(found), TITLE + HEIGHT, "panel scatter")
