"""Plain text: paragraphs to continue."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from .record import Record, Source, checked
from .text_file import lines


class Text(Source):
    """Plain text; a row is what stands between blank lines, or each line if the file has no blank line."""

    kind: Literal["text"] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md")
    join: int = Field(0, ge=0)
    """Characters up to which rows that follow each other are joined; 0 joins none."""

    def records(self, path: Path) -> Iterator[Record]:
        """Records with the single field `text`, by the line it begins on."""
        by_line = all(number == place for place, (number, *_) in enumerate(lines(path), 1))
        paragraphs = self._paragraphs(path, by_line)
        yield from joined(paragraphs, self.join, "\n" if by_line else "\n\n") if self.join else paragraphs

    def _paragraphs(self, path: Path, by_line: bool) -> Iterator[Record]:
        held: list[str] = []
        begins, note = 0, None
        for number, text, defect, new_note in lines(path):
            if held and (by_line or defect or number > begins + len(held)):
                yield checked(f"{path}:{begins}", {"text": "\n".join(held)}, note)
                held, note = [], None
            note = note or new_note
            if defect or text is None:
                yield Record(f"{path}:{number}", None, defect, note)
                continue
            begins = begins if held else number
            held.append(text)
        if held:
            yield checked(f"{path}:{begins}", {"text": "\n".join(held)}, note)


def joined(records: Iterable[Record], size: int, between: str) -> Iterator[Record]:
    """Records of text, those that follow each other made one of at most `size` characters; one that is longer by itself stays as it is."""
    held: list[str] = []
    first: Record | None = None
    for record in records:
        text = record.value["text"] if record.value else None
        full = text is None or sum(map(len, held)) + len(between) * len(held) + len(text) > size
        if first is not None and full:
            yield replace(first, value={"text": between.join(held)})
            held, first = [], None
        if text is None:
            yield record
            continue
        held.append(text)
        first = first or record
    if first is not None:
        yield replace(first, value={"text": between.join(held)})
