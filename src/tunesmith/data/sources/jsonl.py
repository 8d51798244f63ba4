"""JSON lines: one object per line."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from .json_text import RefusedError, parse
from .record import DEEPEST, Record, Source, checked
from .text_file import lines


class Jsonl(Source):
    """One JSON object per line."""

    kind: Literal["jsonl"] = "jsonl"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    def records(self, path: Path) -> Iterator[Record]:
        """One record per line; blank lines are no rows."""
        for number, text, defect, note in lines(path):
            origin = f"{path}:{number}"
            if defect or text is None:
                yield Record(origin, None, defect, note)
                continue
            try:
                value = parse(text)
            except RefusedError as reason:
                yield Record(origin, None, str(reason), note)
                continue
            flat = text.count("[") + text.count("{") <= DEEPEST
            if isinstance(value, dict) and value and flat and "\\u" not in text:
                yield Record(
                    origin, value, None, note
                )  # what would be a defect needs an escape or depth, or was found in the line
            else:
                yield checked(origin, value, note)
