"""From files to examples: every record is read, its format recognised and its fate entered in the ledger."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from tunesmith.base import DataError

from .example import Example
from .formats import FIRST_ROWS, detect
from .ledger import Ledger
from .sources import find_files, member_for
from .sources.text import Text

NOTES = 20


@dataclass(frozen=True)
class Item:
    """An example and the number of its row in the ledger."""

    row: int
    example: Example


@dataclass
class Intake:
    """What was read for one split."""

    items: list[Item]
    sources: list[dict[str, Any]]
    """Per file: `path`, `format`, `fields`, `rows`, `good` and `notes` on what was mended."""


def take_in(
    path: str | Sequence[str], split: str, ledger: Ledger, *, limit: int | None = None, form: str = "auto"
) -> Intake:
    """Read a split; rows that are no examples are quarantined in the ledger.

    Args:
        path: file, glob, folder or a list of these.
        split: what the rows are for; it picks the files of a folder.
        ledger: where every row is entered.
        limit: only the first so many rows, over all files.
        form: name of the format, or `auto`.

    Raises:
        DataError: nothing can be read, or the files hold rows of different shape.
    """
    sources: list[dict[str, Any]] = []
    return Intake(list(arriving(path, split, ledger, sources, limit=limit, form=form)), sources)


def arriving(
    path: str | Sequence[str],
    split: str,
    ledger: Ledger,
    sources: list[dict[str, Any]],
    *,
    limit: int | None = None,
    form: str = "auto",
    join: int = 0,
) -> Iterator[Item]:
    """As `take_in`, one by one; what is known of each file goes to `sources` when it has been read.

    Args:
        join: characters up to which paragraphs of text files are made one row.
    """
    for file in find_files(path, split):
        reader = member_for(file)
        if isinstance(reader, Text):
            reader = Text(join=join)
        records = islice(reader.records(file), limit)
        first = list(islice(records, FIRST_ROWS))
        if not first:
            continue
        found = detect(first, form)
        rows, good = 0, 0
        notes: list[str] = []
        for record in chain(first, records):
            rows += 1
            if record.note and len(notes) < NOTES:
                notes.append(f"{record.origin}: {record.note}")
            row = ledger.enter(record.origin, split)
            try:
                item = Item(row, found.example(record))
            except DataError as reason:
                ledger.settle(row, "quarantined", str(reason))
                continue
            good += 1
            yield item
        limit = None if limit is None else limit - rows
        about = {"path": str(file), "format": found.name, "fields": list(found.fields), "rows": rows}
        sources.append({"split": split, **about, "good": good, "notes": notes})
    if not sources:
        raise DataError(
            f"{path if isinstance(path, str) else ', '.join(path)}: holds no rows; give a file that has some"
        )


def check_shapes(examples: Iterable[Example]) -> None:
    """Refuse a mixture of demonstrations, labelled answers and preferences: one objective cannot learn from all.

    Raises:
        DataError: naming one row of each shape.
    """
    first: dict[str, str] = {}
    for example in examples:
        first.setdefault(shape(example), example.origin)
    if len(first) > 1:
        both = " and ".join(f"{origin} is {shape}" for shape, origin in first.items())
        raise DataError(f"rows of different shape: {both}; give a run rows of one shape")


def shape(example: Example) -> str:
    """What kind of row it is, in words."""
    if len(example.answers) > 1:
        return "a preference (chosen, rejected)"
    return "a labelled answer" if "label" in example.columns else "a demonstration"
