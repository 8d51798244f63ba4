"""Train rows that stand in the test or validation split too: they would turn memory into a good score."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ..example import Example
from ..wording import Index, shingle_sets, telling_keys
from . import NAMED, Cleaner, Drop, Findings

ORDER = ("test", "validation", "train")
"""A row that stands in two splits stays in the first of these."""


class Leakage(Cleaner):
    """Drops rows of train that stand in validation or test, and of validation that stand in test, exactly or nearly.

    The test set is never changed. Exactly: the same prompt, capitals, punctuation and white space apart, whatever the
    answer (a prompt shared by a tenth of the rows tells nothing, then the answer must be the same too).
    """

    kind: Literal["leakage"] = "leakage"
    threshold: float = Field(default=0.7, gt=0.5, le=1.0)
    """Jaccard similarity, over pairs of neighbouring words, from which a row is a near copy. Pairs that stand in
    more than a tenth of the rows are left out; rows with fewer than eight others are only found as exact copies."""

    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Rows that an earlier split of ORDER holds too."""
        places = [(split, index) for split in ORDER for index in range(len(splits.get(split, ())))]
        examples = [splits[split][index] for split, index in places]
        if len({split for split, _ in places}) < 2:
            return Findings((), {"exact": 0, "near": 0, "named": []})
        index = Index(shingle_sets(examples), self.threshold)
        keys = telling_keys(examples)
        first: dict[str, int] = {}
        drops: list[Drop] = []
        near_count = 0
        for split in ORDER:
            numbers = [number for number, place in enumerate(places) if place[0] == split]
            for number in numbers:
                copied = first.get(keys[number])
                near = None if copied is not None else index.nearest(number)
                if copied is not None:
                    drops.append(
                        Drop(*places[number], f"stands in {places[copied][0]} too: copy of {examples[copied].origin}")
                    )
                elif near is not None:
                    near_count += 1
                    where = f"{near[1]:.2f} of {examples[near[0]].origin}"
                    drops.append(Drop(*places[number], f"stands nearly in {places[near[0]][0]} too: {where}"))
            for number in numbers:
                first.setdefault(keys[number], number)
                index.add(number)
        named = [f"{splits[drop.split][drop.index].origin} ({drop.split}) {drop.reason}" for drop in drops[:NAMED]]
        return Findings(tuple(drops), {"exact": len(drops) - near_count, "near": near_count, "named": named})
