"""How a JSON object is read from an answer, and when two values of it are the same."""

import json
import unicodedata
from typing import Any, Literal

Reading = Literal["lenient", "strict"]
"""`strict`: the whole answer is one JSON object, as `json.loads` reads it. `lenient`: the first JSON object anywhere in
the answer, so that a markdown fence or a sentence around it does no harm."""

_DECODER = json.JSONDecoder()


def read_object(text: str, reading: Reading = "lenient") -> dict[str, Any] | None:
    """The JSON object that a text holds, or None."""
    if reading == "strict":
        return _decode(text.strip(), 0, whole=True)
    start = text.find("{")
    while start >= 0:
        found = _decode(text, start, whole=False)
        if found is not None:
            return found
        start = text.find("{", start + 1)
    return None


def _decode(text: str, start: int, whole: bool) -> dict[str, Any] | None:
    try:
        found, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):  # a model may write ten thousand brackets, or a number of ten thousand digits
        return None
    return found if isinstance(found, dict) and (end == len(text) or not whole) else None


def canonical(value: Any, ignore_case: bool = True) -> str:
    """One string for all values that count as the same; runs of blanks never matter, and 1 is 1.0 but not true."""
    try:
        return json.dumps(_plain(value, ignore_case), sort_keys=True, ensure_ascii=False)
    except RecursionError:  # nested deeper than Python follows: equal to no gold value
        return ""


def _plain(value: Any, ignore_case: bool) -> Any:
    if isinstance(value, str):
        text = " ".join(unicodedata.normalize("NFC", value).split())
        return text.casefold() if ignore_case else text
    if isinstance(value, dict):
        return {name: _plain(entry, ignore_case) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry, ignore_case) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
