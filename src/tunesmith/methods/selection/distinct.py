"""Rows of which no two are nearly the same: MinHash (Broder, 1997) and exact Jaccard similarity (Lee et al., 2022, arXiv:2107.06499)."""

from typing import Literal

import numpy as np
from pydantic import Field

from tunesmith.base import DataError
from tunesmith.data.cleaners.near_duplicates import NearDuplicates
from tunesmith.data.corpus import View

from .base import Chosen, Pool, Selector


class Distinct(Selector):
    """Rows drawn at random, without those that are almost the same as one drawn before."""

    kind: Literal["distinct"] = "distinct"
    threshold: float = Field(0.8, gt=0.5, le=1.0)
    """Jaccard similarity from which two rows count as one, as in the cleaner `near_duplicates`; 0.8 in the paper."""

    def choose(self, pool: Pool, count: int, seed: int) -> Chosen:
        """The first distinct ones of a shuffled list."""
        order_N = np.random.default_rng(seed).permutation(len(pool.rows))
        shuffled = View(pool.examples.corpus, pool.examples.numbers[order_N])
        found = NearDuplicates(threshold=self.threshold).find({"train": shuffled})
        left = np.delete(order_N, [drop.index for drop in found.drops])
        if len(left) < count:
            raise DataError(
                f"prepare.select: {count:,} rows are wanted, and of {len(order_N):,} only {len(left):,} are no near duplicates; lower "
                "prepare.select.size, or raise prepare.select.threshold"
            )
        return Chosen(left[:count], {"threshold": self.threshold, "near_duplicates": len(found.drops)})
