"""How pages say times, intervals, and where and when something was measured."""

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


def measured(result: dict[str, Any]) -> str:
    """Where and when."""
    place = result["environment"]
    versions = f"torch {place['torch']}, transformers {place['transformers']}"
    return f"{place['cores']} cores of {place['processor']}, {versions}, {result['date']}"
