"""How figures are written for people: numbers, times, sizes, p-values."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

NONE = "–"
MINUS = "−"
UNKNOWN = "unknown"
"""An interval that nothing is known of."""


def number(value: float | None, digits: int = 1) -> str:
    """A figure with a fixed count of decimals; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 1) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return text if text == NONE or text.startswith(MINUS) else f"+{text}"


def span(found: Mapping[str, Any], digits: int = 1) -> str:
    """The ends of an interval."""
    return _between(found, lambda end: number(end, digits))


def signed_span(found: Mapping[str, Any], digits: int = 1) -> str:
    """The ends of a difference's interval."""
    return _between(found, lambda end: signed(end, digits))


def _between(found: Mapping[str, Any], write: Callable[[float], str]) -> str:
    low, high = found["low"], found["high"]
    return UNKNOWN if low is None or high is None else f"{write(low)} to {write(high)}"


def p_value(value: float) -> str:
    """A p-value; very small ones only as such."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """A time in the two largest units that it has."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(seconds: float) -> str:
    """A point in time, given in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return NONE
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"


def millions(count: int) -> str:
    """A count of parameters."""
    for unit, scale in (("billion", 1e9), ("million", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:,}"


def plain(value: Any) -> str:
    """Any setting or proven figure on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict) and "kind" in value:  # a family's member: its kind, then its settings
        rest = {name: entry for name, entry in value.items() if name != "kind"}
        return f"{value['kind']} ({plain(rest)})" if rest else str(value["kind"])
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {plain(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(entry) for entry in value) or "none"
    return str(value)


def fraction(value: float) -> str:
    """A split's size: below 1 a share of the rows, else a count."""
    return f"{100 * value:g} %" if value < 1 else f"{value:g} rows"
