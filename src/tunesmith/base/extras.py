"""Loads packages that only some installations have, when they are needed, and says how to get them."""

import importlib
import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import unquote, urlsplit

from .errors import MachineError


def extra(module: str, name: str, purpose: str) -> Any:
    """Return a module of the extra called `name`.

    Raises:
        MachineError: it is not installed; says what for, and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise lacking(error, name, purpose) from None


def lacking(error: ImportError, name: str, purpose: str) -> MachineError:
    """What to raise where a module of the extra called `name` could not be imported."""
    package = (error.name or str(error)).split(".")[0]
    return MachineError(f"{purpose}: the package {package!r} is not installed; run: {install(name)}")


def install(name: str = "", *options: str) -> str:
    """The command that installs tunesmith, or an extra of it, from where it was installed: the folder that pip noted (PEP 610), else an index."""
    try:
        noted = json.loads(distribution("tunesmith").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        noted = {}
    source = "tunesmith"
    if "dir_info" in noted:
        source = unquote(urlsplit(noted["url"]).path)
        options = (*options, "--editable") if noted["dir_info"].get("editable") else options
    return " ".join(["pip install", *options, shlex.quote(f"{source}[{name}]" if name else source)])
