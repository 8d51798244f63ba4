"""What came in: read from files, put on its side, cleaned, and, where not all of it is to be learnt from, chosen."""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.base import DataError
from tunesmith.data.cleaners import Drop, Findings
from tunesmith.data.cleaners.leakage import ORDER
from tunesmith.data.columns import with_columns
from tunesmith.data.corpus import Corpus, View
from tunesmith.data.example import WEIGHT, Row
from tunesmith.data.fitting import cut
from tunesmith.data.intake import arriving, shape
from tunesmith.data.ledger import Ledger
from tunesmith.data.prepared import SPLITS, unit
from tunesmith.data.shelf import batched, chunks
from tunesmith.data.split import split
from tunesmith.methods.selection import Pool

from .rendering import Rendering

if TYPE_CHECKING:
    from .prepare import Prepare

Views = dict[str, View]


@dataclass
class Taken:
    """Everything that came in: examples on disk, and what is known of them."""

    ledger: Ledger
    corpus: Corpus
    rows: "array[int]"
    """Per example its row in the ledger."""
    shapes: set[str]
    sources: list[dict[str, Any]]
    views: Views
    """Per split that has files of its own, its examples."""


def take_in(spec: "Prepare", folder: Path) -> Taken:
    """Read the files of every split, some rows at a time."""
    taken = Taken(Ledger(), Corpus(folder), array("q"), set(), [], {})
    for name, (path, limit) in spec.given().items():
        start = len(taken.corpus)
        sources: list[dict[str, Any]] = []
        for arrived in batched(
            arriving(path, name, taken.ledger, sources, limit=limit, form=spec.format, join=spec.join)
        ):
            fields = {field: field for field in spec.columns}
            if spec.weight and name != "test":
                fields[spec.weight] = WEIGHT
            items = with_columns(arrived, fields, taken.ledger) if fields else arrived
            taken.corpus.add([item.example for item in items])
            taken.rows.extend(item.row for item in items)
            taken.shapes.update(shape(item.example) for item in items)
        taken.sources += sources
        taken.views[name] = View(taken.corpus, np.arange(start, len(taken.corpus)))
    return taken


def divide(spec: "Prepare", taken: Taken, seed: int) -> Views:
    """Examples per split, those without files of their own split off the source."""
    sizes = {"test": spec.test_fraction, "validation": spec.validation_fraction}
    parts = {name: size for name, size in sizes.items() if name not in taken.views and size}
    source = taken.views["train"]
    sides = split(source, parts, seed=seed, stratify=spec.stratify, group=spec.group)
    side_N = np.fromiter(map(SPLITS.index, sides), dtype=np.int8, count=len(sides))
    chosen = {name: View(taken.corpus, source.numbers[side_N == side]) for side, name in enumerate(SPLITS)}
    return {name: chosen[name] if name == "train" else taken.views.get(name, chosen[name]) for name in SPLITS}


def clean(spec: "Prepare", splits: Views, taken: Taken) -> dict[str, Any]:
    """Take out what should not be there, in place; the facts of each cleaner, before them those of `group` across files."""
    facts: dict[str, Any] = {}
    if spec.group and len(taken.views) > 1:  # what is split off one source is apart already
        facts["group"] = _take_out(strays(splits, spec.group), splits, taken)
    for cleaner in spec.cleaners:
        facts[cleaner.kind] = _take_out(cleaner.find(splits), splits, taken)
    return facts


def strays(splits: Views, group: str) -> Findings:
    """Rows whose value of a field stands in an earlier split of ORDER too; those without one belong to no other."""
    held: dict[str, tuple[str, int]] = {}
    drops, alone = [], 0
    for name in ORDER:
        new: dict[str, tuple[str, int]] = {}
        for index, example in enumerate(splits[name]):
            value = unit(example, group)
            if value in held:
                side, first = held[value]
                reason = f"its {group!r} stands in {side} too: as in {splits[side][first].origin}"
                drops.append(Drop(name, index, reason))
            elif value and name != ORDER[-1]:
                new.setdefault(value, (name, index))
            alone += not value
        held |= new
    return Findings(tuple(drops), {"of_no_group": alone})


def _take_out(findings: Findings, splits: Views, taken: Taken) -> dict[str, Any]:
    """Take out what was found, in place; how much, and the facts."""
    kept = {name: np.ones(len(view), dtype=bool) for name, view in splits.items()}
    for drop in findings.drops:
        kept[drop.split][drop.index] = False
        row = taken.rows[splits[drop.split].numbers[drop.index]]
        taken.ledger.settle(row, "quarantined", drop.reason, split=drop.split)
    for name, view in splits.items():
        splits[name] = View(taken.corpus, view.numbers[kept[name]])
    return {"dropped": len(findings.drops), **findings.facts}


def select(spec: "Prepare", splits: Views, rendering: Rendering, taken: Taken, model: str, seed: int) -> dict[str, Any]:
    """Take the rows out of train that are not selected, in place; how it was chosen, or nothing if all are to be learnt from.

    Rows that cannot be learnt from are not among those chosen from; they stay, to be quarantined.

    Raises:
        DataError: there are fewer rows than are wanted.
    """
    selector = spec.select
    if selector is None:
        return {}
    view = splits["train"]
    lines = (list(View(taken.corpus, part).lines()) for part in chunks(view.numbers))
    fitted = [_fitted(whole, spec.max_tokens) for _, rows in rendering.rows(lines) for whole in rows]
    usable = np.flatnonzero([row is not None for row in fitted])
    if not len(usable):
        return {}
    pool = Pool(View(taken.corpus, view.numbers[usable]), tuple(row for row in fitted if row is not None), model)
    count = selector.count(len(usable))
    chosen = selector.choose(pool, count, seed)
    left = np.delete(usable, chosen.places)
    for number in view.numbers[left]:
        taken.ledger.settle(taken.rows[number], "unchosen", f"not chosen: by {selector.kind}", split="train")
    splits["train"] = View(taken.corpus, np.delete(view.numbers, left))
    return {"kind": selector.kind, "rows": count, "of": len(usable), **chosen.facts}


def _fitted(whole: Row | DataError, longest: int) -> Row | None:
    """What of a row is learnt, or its beginning where it becomes several; None if nothing is."""
    try:
        return None if isinstance(whole, DataError) else cut(whole, longest)
    except DataError:
        return None
