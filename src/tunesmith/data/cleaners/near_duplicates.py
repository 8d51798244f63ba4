"""Rows that are almost the same as an earlier one, by MinHash (Broder 1997) and exact Jaccard similarity."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from ..corpus import gathered
from ..example import Example
from ..likeness import Index
from ..shelf import chunks
from . import Cleaner, Drop, Findings


class NearDuplicates(Cleaner):
    """Drops rows of train that are almost the same as an earlier row of train, in prompt and answers together.

    Off unless asked for: augmented and paraphrased rows are near duplicates on purpose.
    """

    kind: Literal["near_duplicates"] = "near_duplicates"
    threshold: float = Field(default=0.9, gt=0.5, le=1.0)
    """Jaccard similarity, over pairs of neighbouring words, from which two rows count as one. Pairs that stand
    in more than a tenth of the rows (an instruction, a label) are left out; rows with fewer than eight others are never
    near duplicates."""

    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Later rows that have a near neighbour among the earlier, kept ones."""
        if not splits.get("train"):
            return Findings((), {"threshold": self.threshold})
        view = gathered({"train": splits["train"]})["train"]
        index = Index(view, self.threshold, whole=True)
        drops: list[Drop] = []
        for some in chunks(np.arange(len(view))):
            signed = index.signed(some)
            dropped: set[int] = set()
            for row, others in index.neighbours(signed, signed):
                near = index.nearest(row, [other for other in others if other < row and other not in dropped])
                if near is not None:
                    dropped.add(row)
                    drops.append(Drop("train", row, f"near duplicate: {near[1]:.2f} of {view[near[0]].origin}"))
            index.add(signed.without(dropped))
        return Findings(tuple(drops), {"threshold": self.threshold})
