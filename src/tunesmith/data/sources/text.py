"""Plain text: paragraphs to continue."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from .record import Record, Source, checked
from .text_file import lines


class Text(Source):
    """Plain text; a row is what stands between blank lines, or each line if the file has no blank line."""

    kind: Literal["text"] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md")

    def records(self, path: Path) -> Iterator[Record]:
        """One record with the single field `text` per paragraph, by the line it begins on."""
        by_line = all(number == place for place, (number, *_) in enumerate(lines(path), 1))
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
