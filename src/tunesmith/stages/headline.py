"""The headline of a scoreboard in words: what every system scores, and by how much one is better; and of ways of prompting."""

from typing import Any


def cells(found: dict[str, Any], subject: str) -> list[tuple[str, str, str, str, str]]:
    """Of each system its name, score, interval, by how much the subject is better, which is less where lower is better, and the interval of that."""
    made, lower = [], found.get("better") == "lower"  # runs evaluated before version 6 do not say
    for system, figure in found["systems"].items():
        apart = found["differences"].get(f"{subject} - {system}")
        if apart and lower:
            apart = {"value": -apart["value"], "low": -apart["high"], "high": -apart["low"]}
        more = (f"{apart['value']:+.1f}", f"{apart['low']:+.1f} to {apart['high']:+.1f}") if apart else ("", "")
        made.append((system, f"{figure['value']:.1f}", f"{figure['low']:.1f} to {figure['high']:.1f}", *more))
    return made


def prompt_cells(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each way of prompting its name, the best one marked, its scores on development and test rows, and tokens of a request."""
    return [
        (
            f"{way['way']} (best)" if way["chosen"] else way["way"],
            _spoken(way["development"]),
            _spoken(way["test"]) if way["test"] else "",
            f"{way['tokens']:,.0f}",
        )
        for way in found["ways"]
    ]


def _spoken(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.1f} ({figure['low']:.1f} to {figure['high']:.1f})"
