"""How pages say times, intervals, and where and when something was measured."""

from collections.abc import Iterable
from typing import Any


def minutes(seconds: float) -> str:
    """A time for people."""
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


def spoken(interval: dict[str, Any], sign: str = "", digits: int = 1) -> str:
    """A figure with its interval."""
    value, low, high = (f"{interval[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def called(figure: dict[str, Any]) -> str:
    """What a column of a grader's figure is called: a headline by its unit, a part by its name."""
    return f"{figure['grader']}{', ' + figure['unit'] if figure['name'] == 'headline' else ': ' + figure['name']}"


def measured(*results: dict[str, Any]) -> str:
    """Where and when; of several the versions of the latest, and the days from the first to the last."""
    last = max(results, key=lambda result: str(result["date"]))
    place = last["environment"]
    versions = f"torch {place['torch']}, transformers {place['transformers']}"
    days = span(result["date"] for result in results)
    return f"{place['cores']} cores of {place['processor']}, {versions}, {days}"


def in_threads(count: int) -> str:
    """How many computed."""
    return "one thread" if count == 1 else f"{count} threads"


def span(dates: Iterable[str]) -> str:
    """The day, or the first and the last one."""
    days = sorted(dates)
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
