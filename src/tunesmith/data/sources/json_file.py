"""A JSON file: a list of objects, an object that holds one such list, or a single object."""

from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, ClassVar, Literal

from tunesmith.base import DataError

from .json_text import DECODER, RefusedError
from .jsonl import Jsonl
from .record import Record, Source, checked, kind_of
from .text_file import read_text


class Json(Source):
    """A list of objects; JSON lines under the name `.json` are recognised and read as such."""

    kind: Literal["json"] = "json"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def records(self, path: Path) -> Iterator[Record]:
        """One record per object of the list, by the line it begins on, and of several on a line by its number there."""
        text, note = read_text(path)
        start = _skip(text, 0)
        if start == len(text):
            return
        if text[start] == "[":
            yield from _items(path, text, start + 1, note)
            return
        value, end = _value(path, text, start)
        if _skip(text, end) < len(text):
            yield from Jsonl().records(path)
            return
        if not isinstance(value, dict):
            raise DataError(
                f"{path}: holds {kind_of(value)}, no rows; write a list of objects, or one per line in a .jsonl file"
            )
        yield from _rows(path, text, start, value, note)


def _items(path: Path, text: str, at: int, note: str | None, last_in_file: bool = True) -> Iterator[Record]:
    """Records of a list whose opening bracket stands before `at`."""
    line, counted, last, number = 1, 0, 0, 0
    at = _skip(text, at)
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        last, number = line, number + 1 if line == last else 1
        origin = f"{path}:{line}" if number == 1 else f"{path}:{line}:{number}"
        try:
            value, at = DECODER.raw_decode(text, at)
        except RefusedError as reason:
            raise DataError(f"{origin}: {reason}; mend it, or write one object per line in a .jsonl file") from None
        except JSONDecodeError as error:
            raise _broken(path, error) from None
        except RecursionError:
            raise DataError(f"{origin}: nested too deep to be a row; mend it") from None
        yield checked(origin, value, note)
        note = None
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            break
    if text[at : at + 1] != "]" or (last_in_file and _skip(text, at + 1) < len(text)):
        raise _broken(path, JSONDecodeError("the list does not end as it should", text, min(at, len(text))))


def _rows(path: Path, text: str, start: int, value: dict[str, Any], note: str | None) -> Iterator[Record]:
    """Records of one top-level object, which begins at `start`: those of the list of objects in it, or itself."""
    lists = [name for name, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
    chat = ("messages", "conversations", "conversation", "chosen", "rejected", "prompt", "completion", "tools")
    if len(lists) == 1 and lists[0] not in chat:
        told = f"rows were read from the field {lists[0]!r}"
        yield from _items(path, text, _place(text, start, lists[0]) + 1, told, last_in_file=False)
        return
    columns = [
        part for part in value.values() if isinstance(part, list) and not any(isinstance(cell, dict) for cell in part)
    ]
    if len(columns) == len(value) > 1 and len({len(part) for part in columns}) == 1:
        for number, cells in enumerate(zip(*columns, strict=True), 1):
            row = dict(zip(value, cells, strict=True))
            yield checked(f"{path}:{number}", row, "rows were put together from columns" if number == 1 else None)
        return
    yield checked(f"{path}:1", value, note)


def _place(text: str, start: int, field: str) -> int:
    """Where in a text the value of a field begins, of an object that was read from `start` on."""
    at = _skip(text, start + 1)
    while True:
        name, at = DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # past the colon
        if name == field:
            return at
        _, at = DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # past the comma


def _value(path: Path, text: str, at: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, at)
    except RefusedError as reason:
        raise DataError(f"{path}: {reason}; mend it, or write one object per line in a .jsonl file") from None
    except JSONDecodeError as error:
        raise _broken(path, error) from None
    except RecursionError:
        raise DataError(f"{path}: nested too deep to be rows; mend it") from None


def _broken(path: Path, error: JSONDecodeError) -> DataError:
    what = f"{error.msg[:1].lower()}{error.msg[1:]}"
    where = f"{path}:{error.lineno}: not valid JSON ({what}, column {error.colno})"
    return DataError(f"{where}; mend it, or write one object per line in a .jsonl file")


def _skip(text: str, at: int) -> int:
    """The next place that is no white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
