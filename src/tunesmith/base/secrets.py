"""Keys and passwords: how they are told from other text, so that none is learnt, written into a run or printed."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

MARK = "[redacted]"
KINDS = {
    "a key of a service": r"\b(?:sk-(?=[\w-]{0,64}\d)(?:[a-z]{2,8}-)?[\w-]{20,256}|[rsp]k_(?:live|test)_\w{16,256}|hf_[A-Za-z0-9]{30,64}|gh[opsur]_[A-Za-z0-9]{36,256}"
    r"|github_pat_\w{22,256}|glpat-[\w-]{20,64}|xox[abprs]-[\w-]{10,256}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,256})",
    "a private key": r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY(?: BLOCK)?-----(?:[\s\S]{0,16384}?-----END [A-Z ]{0,32}PRIVATE KEY(?: BLOCK)?-----|[^-]{0,16384})",
    "a JSON web token": r"\beyJ[\w-]{8,2048}\.[\w-]{8,4096}\.[\w-]{0,1024}",
    "a password in an address": r"(?<=:/)/?[^\s/:@\"'<>]{1,128}:(?!(?:pass|passwd|password|pwd|secret|x+|\*+|\$\w+|\$\{\w+\})@)[^\s/@\"'<>]{1,256}(?=@)",
    "a token in an address": r"(?i:(?<=[?&#])(?:(?:(?:access|auth|api|id|refresh|sas)[_-]?)?token|(?:access|auth|api|secret)[_-]?key|password|passwd|secret|sig|signature"
    r"|x-amz-signature)=)[^\s&#\"'<>]{6,1024}",
}
"""What is taken for a secret wherever it stands, by what it is called. Every repetition is bounded, so the time is linear in the text."""
NAMED = re.compile(r"(?:KEY|TOKEN|SECRET|PASS(?:WORD|WD|PHRASE)?|PWD|CREDENTIALS?)(?:_?\d+)?$", re.IGNORECASE)
"""What the name of an environment variable that holds a secret ends with."""
SHORTEST = 12
"""Letters of such a value below which it may be a word; one without a digit, or that is a path, may be one too."""
LONGEST_NAME = 20
"""Letters of a part of a path that is not there, from which on it is taken for a key."""
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
HINT = re.compile(
    r"sk-|[rsp]k_|hf_|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|npm_|pypi-|PRIVATE KEY|eyJ|:/|[?&#][-\w]{3,24}="
)
"""Stands in every text that holds one of KINDS, and in few others."""


def from_environment() -> list[str]:
    """Values of the environment variables that are called keys, tokens or passwords, the longest first."""
    found = {value.strip() for name, value in os.environ.items() if NAMED.search(name)}
    keys = [value for value in found if len(value) >= SHORTEST and re.search(r"\d", value) and not _is_path(value)]
    return sorted(keys, key=len, reverse=True)


def _is_path(value: str) -> bool:
    """Whether a value is one of a file: keys in base 64 may begin with a slash too."""
    if value[0] not in "/~.":
        return False
    return os.path.exists(os.path.expanduser(value)) or all(len(part) < LONGEST_NAME for part in value.split("/"))


def kind_of_secret(text: str, known: list[str]) -> str | None:
    """What kind of secret a text holds, if it holds one; `known` are those of the environment."""
    if any(value in text for value in known):
        return "a key of this machine's environment"
    if not HINT.search(text):
        return None
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), None)


def redacted(text: str, known: list[str] | None = None) -> str:
    """A text without the secrets in it; `known` are those of the environment, which is asked for them unless they are given."""
    for value in from_environment() if known is None else known:
        text = text.replace(value, MARK)
    if HINT.search(text):
        for pattern in _PATTERNS.values():
            text = pattern.sub(MARK, text)
    return text


def redact_crashes() -> None:
    """From here on an error that ends this process is printed as Python does, without keys and passwords."""
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)


def secret_in(value: Any, known: list[str], path: str = "") -> tuple[str, str] | None:
    """Where in a JSON value a secret stands (dotted path), and what kind it is; None where there is none."""
    if isinstance(value, str):
        kind = kind_of_secret(value, known)
        return None if kind is None else (path, kind)
    return next(
        (
            found
            for name, part in _parts(value)
            if (found := secret_in(part, known, f"{path}.{name}" if path else name))
        ),
        None,
    )


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What stands below a value; names of fields are texts too."""
    if isinstance(value, dict):
        for number, (name, part) in enumerate(value.items()):
            yield f"field {number + 1}", str(name)
            yield str(name), part
    elif isinstance(value, list | tuple):
        yield from ((str(number), part) for number, part in enumerate(value))
