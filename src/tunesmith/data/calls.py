"""Calls of tools as models write them: JSON with a name and arguments, in whatever marks their templates put around it (Hermes, Qwen, Llama 3.1, Mistral)."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MARKS = re.compile(
    r"(?:\s|,|;|```(?:json|tool_call)?|</?(?:tool_calls?|function_calls?|calls?|functions?)>|<\|[a-z_▁]+\|>|\[/?[A-Z_]+\])*"
)
"""What may stand around a call: tags, special tokens that are spelled out, a fence, and what separates calls."""
BEGINS = re.compile(r"[{\[<`]")
"""What a call, or a mark before one, begins with."""
UNFINISHED = re.compile(MARKS.pattern + r"(?:`{1,2}|```(?:j(?:so?)?|t[a-z_]*)|</?[a-z_]*|<\|[a-z_▁]*\|?|\[/?[A-Z_]*)?")
"""Marks of which the last may still be on its way."""
LONGEST_WORD = len("-Infinity")
"""Characters from its end within which JSON that is on its way may look wrong: a word, a number or an escape is not finished."""
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """One call."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What was said before the calls, and the calls."""

    text: str
    calls: tuple[Call, ...]


def read_calls(text: str, names: Collection[str] | None = None) -> Said | None:
    """The calls that an answer ends with.

    Args:
        text: the answer, special tokens left out or spelled.
        names: of the tools that may be called; None takes any.

    Returns:
        None where it does not end with calls: there are none, something follows them, or a tool is not among those offered.
    """
    past = -1
    for begin in BEGINS.finditer(text):
        if begin.start() < past:
            continue  # among marks that led to nothing
        past = _after_marks(text, begin.start())
        calls = _all(text, begin.start(), names)
        if calls:
            return Said(text[: begin.start()].strip(), calls)
    return None


def sure(text: str, names: Collection[str] | None = None, start: int = 0) -> int:
    """How many characters of an answer that goes on are no part of the calls that it may end with.

    Args:
        text: the answer so far.
        names: as in `read_calls`.
        start: what an earlier part of the answer gave.
    """
    past = start
    for begin in BEGINS.finditer(text, start):
        if begin.start() < past:
            continue  # as in `read_calls`
        if _may_end(text, begin.start(), names):
            return begin.start()
        past = _after_marks(text, begin.start())
    return len(text)


def _may_end(text: str, place: int, names: Collection[str] | None) -> bool:
    """Whether what stands from a place on are calls, or may become some."""
    while not UNFINISHED.fullmatch(text, place):
        place = _after_marks(text, place)
        if text[place] not in "{[":
            return False
        try:
            value, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            return error.msg.startswith("Unterminated string") or error.pos + LONGEST_WORD > len(text)
        except (ValueError, RecursionError):
            return False
        if _calls(value, names) is None:
            return False
    return True


def _all(text: str, place: int, names: Collection[str] | None) -> tuple[Call, ...]:
    """The calls from a place to the end; none if anything else stands there."""
    found: list[Call] = []
    while (place := _after_marks(text, place)) < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            return ()
        calls = _calls(value, names)
        if calls is None:
            return ()
        found += calls
    return tuple(found)


def _calls(value: Any, names: Collection[str] | None) -> list[Call] | None:
    """A JSON value as calls; None if it is anything else."""
    found = [_call(one) for one in (value if isinstance(value, list) and value else [value])]
    calls = [call for call in found if call is not None and (names is None or call.name in names)]
    return calls if len(calls) == len(found) else None


def _after_marks(text: str, place: int) -> int:
    match = MARKS.match(text, place)
    return match.end() if match else place


def _call(value: Any) -> Call | None:
    """A JSON value as a call, in the forms that templates write."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if not {"arguments", "parameters"} & value.keys() and value.keys() - {"name", "id", "type"}:
        return None  # an object that has a name; a call without arguments has nothing besides
    given = value.get("arguments", value.get("parameters", {}))
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    return Call(value["name"], given) if isinstance(given, dict) else None
