"""Geometry of the charts; the template draws what is computed here. Places are in percent, so that text keeps its size on every screen."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 1000, 400
"""Units of a curve's drawing area."""
MOST_POINTS = 500
"""Points a curve is thinned to: more than a screen has room for, few enough to keep the file small."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """From values to places, 0 to 100."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        """The place of a value; what lies outside is moved to the edge."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A dot with its interval."""

    name: str
    figure: Mapping[str, Any]
    dot: float
    left: float
    right: float
    strong: bool


@dataclass(frozen=True)
class Forest:
    """Dots with intervals above one axis; `zero` is the place of no difference."""

    marks: list[Mark]
    ticks: list[Tick]
    zero: float | None


@dataclass(frozen=True)
class Dot:
    """A point that stands out, with its label."""

    across: float
    up: float
    text: str
    strong: bool


@dataclass(frozen=True)
class Panel:
    """One curve, faint as measured and clear as smoothed, with axes."""

    title: str
    faint: str
    clear: str
    dots: list[Dot]
    across: list[Tick]
    up: list[Tick]
    rule: float | None
    """Place of the chosen step."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about `count` of them, from at most `low` to at least `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    exponent = math.floor(math.log10(rough))
    power = 10.0**exponent
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 2 - exponent) for index in range(first, last + 1)]


def _axis(values: Sequence[float], count: int = 5) -> tuple[Scale, list[Tick]]:
    found = ticks(min(values), max(values), count)
    scale = Scale(found[0], found[-1])
    return scale, [Tick(scale(value), f"{value:g}".replace("-", "−")) for value in found]


def finite(value: float | None) -> bool:
    """Whether there is a number that has a place on an axis."""
    return value is not None and math.isfinite(value)


def reach(found: Mapping[str, Any]) -> tuple[float, float]:
    """The ends of an interval; one that is not known is beyond every axis."""
    low, high = found["low"], found["high"]
    return low if finite(low) else -math.inf, high if finite(high) else math.inf


def forest(
    entries: Mapping[str, Mapping[str, Any]], strong: str = "", *, whole: bool = False, zero: bool = False
) -> Forest:
    """A forest plot.

    Args:
        entries: per name `value`, `low` and `high`; what is not a finite number has no dot, and an end that is none lies at the axis' end.
        strong: the name that stands out; empty for none.
        whole: whether the axis goes from 0 to 100.
        zero: whether the axis holds zero, marked.
    """
    seen = [found[name] for found in entries.values() for name in ("value", "low", "high") if finite(found[name])]
    scale, marked = _axis([*seen, *([0.0, 100.0] if whole else []), *([0.0] if zero else [])] or [0.0])
    marks = [
        Mark(name, found, scale(found["value"]), scale(low), scale(high), name == strong)
        for name, found in entries.items()
        for low, high in (reach(found),)
        if finite(found["value"])
    ]
    return Forest(marks, marked, scale(0.0) if zero else None)


def panel(
    title: str, points: Points, *, last: float, smooth: bool = False, dotted: bool = False, rule: float | None = None, floor: bool = True
) -> Panel:  # fmt: skip
    """A curve over steps.

    Args:
        points: (step, value), in order.
        last: the right end of the axis: the last planned step.
        smooth: whether a moving average is drawn over the faint points.
        dotted: whether each point is marked and labelled where there are few.
        rule: the chosen step.
        floor: whether the axis starts at zero.
    """
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if not points:
        return Panel(title, "", "", [], [], [], None)
    across = Scale(0.0, max(last, points[-1][0], 1.0))
    up, marked = _axis([*(value for _, value in points), *([0.0] if floor else [])], 4)
    steps = [value for value in ticks(across.low, across.high, 4) if value <= across.high]
    dots = (
        [Dot(across(step), 100 - up(value), f"{value:.4g}", step == rule) for step, value in points] if dotted else []
    )
    clear = _path(points if not smooth else moving_average(points), across, up)
    return Panel(
        title,
        _path(points, across, up) if smooth else "",
        clear,
        dots if len(dots) <= 40 else [dot for dot in dots if dot.strong],
        [Tick(across(value), f"{value:g}") for value in steps],
        [Tick(100 - tick.place, tick.text) for tick in marked],
        across(rule) if rule is not None else None,
    )


@dataclass(frozen=True)
class Axis:
    """Where values are on an axis, and what it says there."""

    place: Callable[[Any], float]
    ticks: list[Tick]


@dataclass(frozen=True)
class Thread:
    """A line from axis to axis: through `path`, drawn between points in percent."""

    name: str
    path: str
    strong: bool


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: upright axes beside each other, and lines through them."""

    axes: list[tuple[float, str, list[Tick]]]
    """Of each its place, its name and its ticks."""
    threads: list[Thread]


def axis(values: Sequence[Any], *, names: Sequence[Any] = (), log: bool = False) -> Axis:
    """An axis that holds values: by their size, by its logarithm, or, where `names` lists all there may be, evenly in their order."""
    if names:
        places = {str(name): round(100 * (number + 0.5) / len(names), 2) for number, name in enumerate(names)}
        return Axis(lambda value: places[str(value)], [Tick(place, name) for name, place in places.items()])
    if not log:
        scale, marked = _axis(values)
        return Axis(scale, marked)
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    decades = Scale(low, max(high, low + 1))
    return Axis(
        lambda value: decades(math.log10(value)),
        [Tick(decades(power), f"{10.0**power:g}") for power in range(low, max(high, low + 1) + 1)],
    )


def scatter(
    title: str, points: Sequence[tuple[Any, float, str]], across: Axis, strong: str = "", line: Points = (), log: bool = False
) -> Panel:  # fmt: skip
    """Named dots, one of which may stand out, and a line behind them.

    Args:
        points: (value across, value up, name).
        across: where the first of these are.
        strong: the name that stands out.
        line: (value across, value up).
        log: whether values up are placed by their logarithm.
    """
    values = [*(value for _, value, _ in points), *(value for _, value in line)]
    scale, marked = _axis(values, 4)
    upward = axis(values, log=True) if log else Axis(scale, marked)
    places = [(across.place(where), round(100 - upward.place(value), 2), name) for where, value, name in points]
    dots = [Dot(*place, place[-1] == strong) for place in places]
    path = " ".join(
        f"{across.place(where) * WIDTH / 100:.1f} {(100 - upward.place(value)) * HEIGHT / 100:.1f}"
        for where, value in line
    )
    marks = [Tick(100 - tick.place, tick.text) for tick in upward.ticks]
    return Panel(
        title, "", f"M{path}" if path else "", sorted(dots, key=lambda dot: dot.strong), across.ticks, marks, None
    )


def parallel(axes: Mapping[str, Axis], lines: Mapping[str, Mapping[str, Any]], strong: str = "") -> Parallel:
    """Lines that have a value on every axis, the one that stands out on top."""
    gap = 100 / max(1, len(axes) - 1)
    places = {name: round(number * gap, 2) for number, name in enumerate(axes)}
    threads = []
    for name, values in sorted(lines.items(), key=lambda line: line[0] == strong):
        points = (
            f"{places[each] * WIDTH / 100:.1f} {(100 - axes[each].place(values[each])) * HEIGHT / 100:.1f}"
            for each in axes
        )
        threads.append(Thread(name, "M" + " ".join(points), name == strong))
    marked = {
        name: [Tick(round(100 - tick.place, 2), tick.text) for tick in found.ticks] for name, found in axes.items()
    }
    return Parallel([(places[name], name, marked[name]) for name in axes], threads)


def moving_average(points: Points) -> list[tuple[float, float]]:
    """Exponential moving average over about a twentieth of the points, without the bias towards its start (Kingma and Ba 2015)."""
    keep = 1 - 2 / (max(1.0, len(points) / 20) + 1)
    total = weight = 0.0
    smoothed = []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append((step, total / weight))
    return smoothed


def thin(points: Points) -> Points:
    """At most MOST_POINTS: of each stretch the lowest and the highest, so that spikes stay."""
    if len(points) <= MOST_POINTS:
        return points
    edges = [round(index * len(points) / (MOST_POINTS // 2)) for index in range(MOST_POINTS // 2 + 1)]
    stretches = [points[start:end] for start, end in pairwise(edges)]
    ends = [{min(part, key=_value), max(part, key=_value)} for part in stretches]
    return [point for pair in ends for point in sorted(pair)]


def _value(point: tuple[float, float]) -> float:
    return point[1]


def _path(points: Points, across: Scale, up: Scale) -> str:
    places = [
        f"{across(step) * WIDTH / 100:.1f} {(100 - up(value)) * HEIGHT / 100:.1f}" for step, value in thin(points)
    ]
    return f"M{places[0]}L" + " ".join(places if len(places) == 1 else places[1:])
