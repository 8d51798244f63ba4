"""Loads the packages that only grading needs, when it needs them."""

import importlib
from typing import Any

from tunesmith.base import MachineError


def extra(module: str) -> Any:
    """Return a module of the `eval` extra.

    Raises:
        MachineError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).split(".")[0]
        raise MachineError(
            f"grading: the package {package!r} is not installed; run: pip install 'tunesmith[eval]'"
        ) from None
