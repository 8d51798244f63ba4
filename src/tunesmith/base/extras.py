"""Loads packages that only some installations have, when they are needed."""

import importlib
from typing import Any

from .errors import MachineError


def extra(module: str, name: str, purpose: str) -> Any:
    """Return a module of the extra called `name`.

    Raises:
        MachineError: it is not installed; says what for, and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).split(".")[0]
        raise MachineError(
            f"{purpose}: the package {package!r} is not installed; run: pip install 'tunesmith[{name}]'"
        ) from None
