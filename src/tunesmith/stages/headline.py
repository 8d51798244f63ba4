"""The headline of a scoreboard in words: what every system scores, and by how much one is better; and of ways of prompting."""

from collections.abc import Mapping
from typing import Any


def cells(found: dict[str, Any], subject: str) -> list[tuple[str, str, str, str, str]]:
    """Of each system its name, score, interval, by how much the subject is better, which is less where lower is better, and the interval of that."""
    made, digits, lower = [], decimals(found), found.get("better") == "lower"
    for system, figure in found["systems"].items():
        apart = found["differences"].get(f"{subject} - {system}")
        if apart and lower:
            ends = {"low": apart["high"], "high": apart["low"]}
            apart = {"value": -apart["value"], **{name: None if end is None else -end for name, end in ends.items()}}
        more = _apart(apart, digits, "+") if apart else ("", "")
        made.append((system, *_apart(figure, digits), *more))
    return made


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader of an evaluation's figures has to know beside them."""
    cut = metrics.get("cut_off", {}).items()
    told = [f"{share:.1f} % of the answers of {system} were cut off at evaluate.max_tokens" for system, share in cut]
    return [*told, *metrics.get("canaries", {}).get("warnings", ())]


def prompt_cells(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each way of prompting its name, the best one marked, its scores on development and test rows, and tokens of a request."""
    return [
        (
            f"{way['way']} (best)" if way["chosen"] else way["way"],
            spoken(way["development"], decimals(found)),
            spoken(way["test"], decimals(found)) if way["test"] else "",
            f"{way['tokens']:,.0f}",
        )
        for way in found["ways"]
    ]


def decimals(found: Mapping[str, Any]) -> int:
    """How many a grader's figures are written with."""
    digits: int = found.get("digits", 2 if found.get("better") == "lower" else 1)  # what is older does not say
    return digits


def spoken(figure: dict[str, Any], digits: int, sign: str = "") -> str:
    """A figure with its interval; differences take the sign +."""
    return "{} ({})".format(*_apart(figure, digits, sign))


def _apart(figure: dict[str, Any], digits: int, sign: str = "") -> tuple[str, str]:
    known = (name for name in ("value", "low", "high") if figure[name] is not None)
    value, *ends = (f"{figure[name]:{sign}.{digits}f}" for name in known)
    return value, " to ".join(ends) if len(ends) == 2 else "no interval"
