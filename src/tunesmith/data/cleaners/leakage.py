"""Train rows that stand in the test or validation split too: they would turn memory into a good score."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from ..corpus import firsts, gathered, telling_keys, together
from ..example import Example
from ..likeness import Index
from ..shelf import chunks
from . import NAMED, Cleaner, Drop, Findings

ORDER = ("test", "validation", "train")
"""A row that stands in two splits stays in the first of these."""


class Leakage(Cleaner):
    """Drops rows of train that stand in validation or test, and of validation that stand in test, exactly or nearly.

    The test set is never changed. Exactly: the same prompt, capitals, punctuation and white space apart (not so
    operators, symbols and the brackets of code), whatever the answer (a prompt shared by a tenth of the rows tells nothing, then the answer must be the same too).
    """

    kind: Literal["leakage"] = "leakage"
    threshold: float = Field(default=0.7, gt=0.5, le=1.0)
    """Jaccard similarity, over pairs of neighbouring words, from which a row is a near copy. Pairs that stand in
    more than a tenth of the rows are left out; rows with fewer than eight others are only found as exact copies."""

    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Rows that an earlier split of ORDER holds too."""
        views = gathered({split: splits[split] for split in ORDER if len(splits.get(split, ()))})
        if len(views) < 2:
            return Findings((), {"exact": 0, "near": 0, "named": []})
        everything = together(list(views.values()))
        starts = dict(zip(views, np.cumsum([0, *map(len, views.values())]).tolist(), strict=False))
        first = firsts(telling_keys(everything))
        near = _near(
            Index(everything, self.threshold),
            [np.arange(starts[name], starts[name] + len(views[name])) for name in views],
            first,
        )
        drops: list[Drop] = []

        def place(row: int) -> tuple[str, int]:
            split = next(name for name in reversed(views) if row >= starts[name])
            return split, row - starts[split]

        for split, start in starts.items():
            for row in range(start, start + len(views[split])):
                if first[row] < start:
                    other = int(first[row])
                    reason = f"stands in {place(other)[0]} too: copy of {everything[other].origin}"
                elif row in near:
                    other, score = near[row]
                    reason = f"stands nearly in {place(other)[0]} too: {score:.2f} of {everything[other].origin}"
                else:
                    continue
                drops.append(Drop(split, row - start, reason))
        named = [f"{splits[drop.split][drop.index].origin} ({drop.split}) {drop.reason}" for drop in drops[:NAMED]]
        return Findings(tuple(drops), {"exact": len(drops) - len(near), "near": len(near), "named": named})


def _near(index: Index, parts: Sequence[np.ndarray], first: np.ndarray) -> dict[int, tuple[int, float]]:
    """Per row that is no exact copy, the row of an earlier part that it is nearly the same as, and how nearly."""
    found: dict[int, tuple[int, float]] = {}
    for part in parts:
        held = []
        for some in chunks(part):
            signed = index.signed(some)
            for row, others in index.neighbours(signed):
                near = index.nearest(row, others) if first[row] >= part[0] else None
                if near is not None:
                    found[row] = near
            if part is not parts[-1]:
                held.append(signed)
        for signed in held:
            index.add(signed)
    return found
