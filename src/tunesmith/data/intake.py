"""From files to examples: every record is read, its format recognised and its fate entered in the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tunesmith.base import DataError

from .example import Example
from .formats import detect
from .ledger import Ledger
from .sources import find_files, member_for

NOTES = 20


@dataclass(frozen=True)
class Item:
    """An example and the number of its row in the ledger."""

    row: int
    example: Example


@dataclass
class Intake:
    """What was read for one split."""

    items: list[Item] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
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
    intake = Intake()
    for file in find_files(path, split):
        records = list(islice(member_for(file).records(file), limit))
        limit = None if limit is None else limit - len(records)
        if not records:
            continue
        found = detect(records, form)
        before = len(intake.items)
        for record in records:
            row = ledger.enter(record.origin, split)
            try:
                intake.items.append(Item(row, found.example(record)))
            except DataError as reason:
                ledger.settle(row, "quarantined", str(reason))
        notes = [f"{record.origin}: {record.note}" for record in records if record.note]
        about = {"path": str(file), "format": found.name, "fields": list(found.fields), "rows": len(records)}
        intake.sources.append({"split": split, **about, "good": len(intake.items) - before, "notes": notes[:NOTES]})
    if not intake.sources:
        raise DataError(
            f"{path if isinstance(path, str) else ', '.join(path)}: holds no rows; give a file that has some"
        )
    return intake


def check_shapes(examples: Sequence[Example]) -> None:
    """Refuse a mixture of demonstrations, labelled answers and preferences: one objective cannot learn from all.

    Raises:
        DataError: naming one row of each shape.
    """
    first: dict[str, str] = {}
    for example in examples:
        first.setdefault(_shape(example), example.origin)
    if len(first) > 1:
        both = " and ".join(f"{origin} is {shape}" for shape, origin in first.items())
        raise DataError(f"rows of different shape: {both}; give a run rows of one shape")


def _shape(example: Example) -> str:
    if len(example.answers) > 1:
        return "a preference (chosen, rejected)"
    return "a labelled answer" if "label" in example.columns else "a demonstration"
