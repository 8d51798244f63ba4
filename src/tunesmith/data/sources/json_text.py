"""JSON read strictly: what Python's parser lets pass in silence (NaN, 1e999, a key given twice) is a defect here."""

import json
import math
from typing import Any


class RefusedError(ValueError):
    """Well-formed for a lenient parser, refused here; the text is the reason."""


INDENTED = "not one object per line: is this an indented JSON file? Name it .json, or write each row on its own line"


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError(f"a key is given twice: {twice!r}")
    return found


def _constant(name: str) -> None:
    raise RefusedError(f"not valid JSON: {name} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RefusedError(f"not valid JSON: {text[:20]} is too large for a number")
    return value


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's own limit
        raise RefusedError(f"not valid JSON: a number of {len(text):,} digits") from None


DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float, parse_int=_int)


def parse(text: str) -> Any:
    """The one JSON value in `text`.

    Raises:
        RefusedError: with the reason, if there is none or more than one.
    """
    stripped = text.lstrip()
    try:
        value, end = DECODER.raw_decode(stripped)
    except RefusedError:
        raise
    except RecursionError:
        raise RefusedError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise RefusedError(_explain(stripped, error)) from None
    rest = stripped[end:].strip()
    if rest:
        raise RefusedError(_explain_rest(rest))
    return value


def _explain(text: str, error: json.JSONDecodeError) -> str:
    if text.rstrip() in ("[", "]", "{", "}") or text.rstrip().endswith("},"):
        return INDENTED
    if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg:
        return "not valid JSON: the line is cut short"
    if text.startswith("{'"):
        return "not valid JSON: it uses single quotes, as Python prints; write it with json.dumps"
    return f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]} at place {error.pos + 1} of the line"


def _explain_rest(rest: str) -> str:
    if rest == ",":
        return INDENTED
    if rest[0] in "{[":
        return "two objects on one line: put each on its own"
    return f"not valid JSON: {rest[:20]!r} stands behind the object"
