"""The headline of a scoreboard in words: what every system scores, and by how much one is better."""

from typing import Any


def cells(found: dict[str, Any], subject: str) -> list[tuple[str, str, str, str, str]]:
    """Of each system its name, score, interval, by how much the subject scores more, and that difference's interval."""
    made = []
    for system, figure in found["systems"].items():
        apart = found["differences"].get(f"{subject} - {system}")
        more = (f"{apart['value']:+.1f}", f"{apart['low']:+.1f} to {apart['high']:+.1f}") if apart else ("", "")
        made.append((system, f"{figure['value']:.1f}", f"{figure['low']:.1f} to {figure['high']:.1f}", *more))
    return made
