"""Geometry of figures over the number of rows: what was measured, and a fitted curve with its band."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .charts import HEIGHT, WIDTH, Scale, Tick, finite, reach, ticks


@dataclass(frozen=True)
class Line:
    """A series of figures over rows."""

    name: str
    points: Sequence[Mapping[str, Any]]
    """Each with `size`, `value`, `low` and `high`."""
    kind: str
    """What it is drawn as."""


@dataclass(frozen=True)
class Drawn:
    """A series in its place."""

    name: str
    kind: str
    path: str
    marks: list[tuple[float, float, float, float]]
    """Of each point its place across, and from above its place, and those of the ends of its interval."""


@dataclass(frozen=True)
class Plot:
    """Series over a logarithmic axis of rows, where 0 has a place of its own at the left; `band` is the outline of a fitted curve's interval."""

    lines: list[Drawn]
    levels: list[Tick]
    across: list[Tick]
    up: list[Tick]
    curve: str
    band: str


def plot(
    lines: Sequence[Line], levels: Mapping[str, float], curve: Sequence[Mapping[str, float]] = (), *, whole: bool = False
) -> Plot:  # fmt: skip
    """A plot over rows.

    Args:
        lines: what was measured at each size; intervals are cut off at the axis' ends.
        levels: what does not depend on rows.
        curve: what was fitted, each with `size`, `value`, `low` and `high`.
        whole: whether the axis ends at 0 and 100 at most.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point["value"])]
    seen = [point[name] for point in points for name in ("value", "low", "high") if finite(point[name])]
    seen += [*levels.values(), *(point[name] for point in curve for name in ("value", "low", "high"))]
    marked = [value for value in ticks(min(seen), max(seen)) if not whole or 0 <= value <= 100] or [0.0, 100.0]
    up, sizes = Scale(marked[0], marked[-1]), sorted({point["size"] for point in points if point["size"]})
    along = _rows_axis(sizes, curve[-1]["size"] if curve else sizes[-1])

    def high(value: float) -> float:
        return round(100 - up(value), 2)

    def fitted(name: str) -> list[tuple[float, float]]:
        return [(along(point["size"]), high(point[name])) for point in curve]

    outline = [*fitted("high"), *fitted("low")[::-1]]
    named = [0, *sizes[:: -(-len(sizes) // 8)], *([curve[-1]["size"]] if curve else [])]
    return Plot(
        [_drawn(line, along, high) for line in lines],
        [Tick(high(value), name) for name, value in levels.items()],
        [Tick(along(size), f"{size:,.0f}") for size in named],
        [Tick(high(value), f"{value:g}".replace("-", "−")) for value in marked],
        _joined(fitted("value")),
        _joined(outline) + ("Z" if outline else ""),
    )


def _drawn(line: Line, along: Callable[[float], float], high: Callable[[float], float]) -> Drawn:
    """A series in its place, without points that have no value."""
    points = [point for point in line.points if math.isfinite(point["value"])]
    marks = [
        (along(point["size"]), high(point["value"]), high(least), high(most))
        for point, (least, most) in zip(points, map(reach, points), strict=True)
    ]
    return Drawn(line.name, line.kind, _joined([mark[:2] for mark in marks]), marks)


def _rows_axis(sizes: Sequence[float], last: float) -> Callable[[float], float]:
    """Places of sizes: 0 at the left, the others by their logarithm, one doubling or more to the right of it."""
    first = math.log2(sizes[0]) - 1
    scale = Scale(first, max(math.log2(last), first + 2))
    return lambda size: scale(math.log2(size)) if size else 0.0


def _joined(places: Sequence[tuple[float, float]]) -> str:
    """A path through places in percent."""
    each = [f"{across * WIDTH / 100:.1f} {down * HEIGHT / 100:.1f}" for across, down in places]
    return f"M{each[0]}L" + " ".join(each[1:] or each) if each else ""
