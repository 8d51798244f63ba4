"""CSV and TSV: the first line names the fields."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from tunesmith.base import DataError

from .json_text import RefusedError, parse
from .record import LONGEST, Record, Source, checked
from .text_file import MARK_REMOVED, raw_lines

NESTED = ("messages", "conversations", "tools")
"""Columns whose cells are JSON, since a table has no lists."""
PERHAPS = ("conversation", "chosen", "rejected", "prompt", "completion", "history")
"""Columns of text whose cells may be messages, or pairs, as JSON."""
_SPEAKERS = "system|developer|user|human|prompter|assistant|gpt|chatgpt|model|bot|bing|bard|tool|function|observation|function_response|tool_response|function_call|tool_call"
"""Who may speak in a turn: the names that `conversation.py` reads."""
_TURNS = re.compile(rf"""(?s)\s*\[\s*\{{.*?["'](?:role|from)["']\s*:\s*["'](?:{_SPEAKERS})["']""")
_PAIRS = re.compile(r"""\s*\[\s*\[\s*["']""")


class Csv(Source):
    """A table with a header line; the delimiter (`,` `;` tab `|`) is the one that is commonest in the header."""

    kind: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def records(self, path: Path) -> Iterator[Record]:
        """One record per row, by the line it begins on; empty cells are left out."""
        csv.field_size_limit(4 * LONGEST)
        text = (line.decode("utf-8", "surrogateescape") for line in raw_lines(path))
        header_line = next(text, "")
        note = MARK_REMOVED if header_line.startswith("\ufeff") else None
        header_line = header_line.removeprefix("\ufeff")
        delimiter = max(",;\t|", key=header_line.count)
        header = _header(path, header_line, delimiter)
        for line, cells in _rows(path, csv.reader(text, delimiter=delimiter, strict=True)):
            if isinstance(cells, str):
                yield Record(f"{path}:{line}", None, cells, note)
            elif any(cell.strip() for cell in cells):
                yield _record(f"{path}:{line}", header, cells, note)
            note = None


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str] | str]]:
    """The line each row begins on, and its cells or what is wrong with it; `reader` stands behind the header."""
    begins = 2
    while True:
        try:
            yield begins, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise DataError(
                    f"{path}:{begins}: a quote is opened here and never closed; close it, or double it inside a cell"
                ) from None
            yield begins, f"not valid CSV: {error}"
        begins = reader.line_num + 2


def _header(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise DataError(
            f"{path}:1: the header is not valid CSV ({error}); if lines end with carriage returns alone, save the table anew"
        ) from None
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: the header names the column {twice!r} twice; rename one")
    return names


def _record(origin: str, header: list[str], cells: list[str], note: str | None) -> Record:
    if len(cells) != len(header):
        return Record(origin, None, f"wrong number of fields: {len(cells)}, and the header names {len(header)}", note)
    if [cell.strip() for cell in cells] == header:
        return Record(origin, None, "the header again: two tables were put one behind the other", note)
    row: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell if letter > "\ud7ff"):
        return Record(origin, None, "not valid UTF-8: save the table as UTF-8", note)
    for name in (
        *NESTED,
        *(name for name in PERHAPS if (_PAIRS if name == "history" else _TURNS).match(row.get(name, ""))),
    ):
        if name in row:
            try:
                row[name] = parse(row[name])
            except RefusedError as reason:
                return Record(origin, None, f"the cell {name!r} is not valid JSON: {reason}", note)
    return checked(origin, row, note)
