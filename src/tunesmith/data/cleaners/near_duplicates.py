"""Rows that are almost the same as an earlier one, by MinHash (Broder 1997) and exact Jaccard similarity."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ..example import Example
from ..wording import Index, shingle_sets
from . import Cleaner, Drop, Findings


class NearDuplicates(Cleaner):
    """Drops rows of train that are almost the same as an earlier row of train.

    Off unless asked for: augmented and paraphrased rows are near duplicates on purpose.
    """

    kind: Literal["near_duplicates"] = "near_duplicates"
    threshold: float = Field(default=0.9, gt=0.5, le=1.0)
    """Jaccard similarity, over pairs of neighbouring words, from which two rows count as one. Pairs that stand
    in more than a tenth of the rows (an instruction, a label) are left out; rows with fewer than eight others are never
    near duplicates."""

    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Later rows that have a near neighbour among the earlier, kept ones."""
        examples = splits.get("train", ())
        index = Index(shingle_sets(examples), self.threshold)
        drops = []
        for number in range(len(examples)):
            near = index.nearest(number)
            if near is None:
                index.add(number)
            else:
                drops.append(Drop("train", number, f"near duplicate: {near[1]:.2f} of {examples[near[0]].origin}"))
        return Findings(tuple(drops), {"threshold": self.threshold})
