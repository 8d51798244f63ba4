"""A record is one row as it stands in a file, or the reason why it cannot be one."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.base import Family

LONGEST = 1_000_000
"""Characters beyond which a row is taken for an accident."""
DEEPEST = 100
"""Objects and lists within each other beyond which a row is taken for an accident."""


@dataclass(frozen=True)
class Record:
    """One row of a file: `value` is a mapping of its fields unless `defect` says why there is none."""

    origin: str
    """`file:line`, line from 1; the record's number where a file has no lines."""
    value: dict[str, Any] | None
    defect: str | None = None
    """Reason in words, `what: detail`; what stands before the colon is the same for all rows with this defect."""
    note: str | None = None
    """Something that was mended in passing and that the user should know."""


class Source(Family):
    """A kind of file that rows are read from."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of the files it reads, in small letters."""
    zipped: ClassVar[bool] = True
    """Whether `.gz` may follow each."""

    @abstractmethod
    def records(self, path: Path) -> Iterator[Record]:
        """Every record of one file; a bad row is a record with a defect, it never raises.

        Raises:
            DataError: the file as a whole cannot be read.
        """


def checked(origin: str, value: Any, note: str | None = None) -> Record:
    """A record of a parsed value, with a defect if it is no mapping or a string in it cannot be trained on."""
    if not isinstance(value, dict):
        return Record(origin, None, f"not an object: it is {kind_of(value)}; write one {{...}} per row")
    defect = "an empty object: it has no fields" if not value else string_defect(value)
    return Record(origin, None if defect else value, defect, note)


def string_defect(value: Any, path: str = "", depth: int = 0) -> str | None:
    """What is wrong with the first bad string inside a value, and where; or that it goes too deep."""
    if isinstance(value, str):
        return _text_defect(value, path)
    if depth > DEEPEST:
        return f"nested too deep: field {path.partition('.')[0]!r} goes deeper than {DEEPEST}"
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in below:
        defect = string_defect(name, f"{path}.{name}" if path else str(name)) if isinstance(name, str) else None
        defect = defect or string_defect(part, f"{path}.{name}" if path else str(name), depth + 1)
        if defect:
            return defect
    return None


def _text_defect(text: str, path: str) -> str | None:
    path = path.encode("utf-8", "replace").decode()
    if "\0" in text:
        return f"holds a NUL character: field {path!r}"
    if len(text) > LONGEST:
        return f"too long: field {path!r} has {len(text):,} characters, at most {LONGEST:,} are taken for a row"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate: field {path!r}, U+{ord(text[error.start]):04X}, half of a character cut in two"
    return None


def plain(value: Any) -> Any:
    """A table cell as JSON knows it: numbers as numbers, raw bytes as their size, dates and whatever else as text; without fields that are null,
    since a table fills in every field that another row has."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bytes):
        return {"bytes": len(value)}  # no text, or its size would be learnt
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, with its article."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
