"""Loads the packages that only grading needs, when it needs them."""

from typing import Any

from tunesmith.base import extras


def extra(module: str) -> Any:
    """Return a module of the `eval` extra.

    Raises:
        MachineError: it is not installed.
    """
    return extras.extra(module, "eval", "grading")
