"""Choices: where a value stands in an answer, and the answer with another one in its place."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tunesmith.base import DataError

from .example import Example, Message

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Place:
    """A value of a JSON object within its text."""

    name: str
    """The field that stands for a `*` in the path; empty without one."""
    value: str
    """As in `classes.facets`."""
    start: int
    stop: int


def places(text: str, parts: Sequence[str]) -> Iterator[Place]:
    """Where the values at a path stand in a text: that of a JSON object, or, without a path, the text itself.

    Raises:
        DataError: a list stands there.
    """
    if not parts:
        yield Place("", text, 0, len(text))
        return
    yield from _below(text, _after_blanks(text, 0), parts, "")


def _below(text: str, start: int, parts: Sequence[str], name: str) -> Iterator[Place]:
    value, stop = _DECODER.raw_decode(text, start)
    if isinstance(value, list):
        raise DataError(f"{text[start:stop]} is a list, and only a field with one value is one of several choices")
    if not parts:
        said = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        yield Place(name, said, start, stop)
    elif isinstance(value, dict):
        first, *rest = parts
        for key, at in _members(text, start):
            if first in ("*", key):
                yield from _below(text, at, rest, ".".join(filter(None, (name, key))) if first == "*" else name)


def _members(text: str, start: int) -> Iterator[tuple[str, int]]:
    """Each name in the object that begins at `start`, and where its value begins."""
    place = _after_blanks(text, start + 1)
    while text[place] != "}":
        key, place = _DECODER.raw_decode(text, place)
        at = _after_blanks(text, _after_blanks(text, place) + 1)  # behind the colon
        yield key, at
        _, place = _DECODER.raw_decode(text, at)
        place = _after_blanks(text, place)
        if text[place] == ",":
            place = _after_blanks(text, place + 1)


def _after_blanks(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place


def answering(example: Example, text: str) -> Example:
    """The example with its right answer, the last thing the assistant says, replaced."""
    answer, last = example.answers[0], example.turn
    changed: Message = {**answer[last], "content": text}
    return replace(example, answers=((*answer[:last], changed, *answer[last + 1 :]),))
