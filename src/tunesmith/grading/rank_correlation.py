"""Rank correlation (Spearman, 1904) of a reward model's scores with those that people gave."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.data.example import Example

from .base import HEADLINE, Grader, Reads
from .score_error import given
from .statistics import Array, Figure


class RankCorrelation(Grader):
    """Whether scores put answers in the order that people did, from -1 to 1; 0 where all scores are alike.

    Ranks are those among all rows, in every resample and slice too.
    """

    kind: Literal["rank_correlation"] = "rank_correlation"
    unit: ClassVar[str] = "rank correlation"
    digits: ClassVar[int] = 3
    reads: ClassVar[Reads] = "scores"
    least: ClassVar[float] = -1.0
    column: str = "score"
    """Column with the score that people gave."""

    def figures(self, examples: Sequence[Example], outputs: Sequence[Sequence[float]]) -> dict[str, Figure]:
        """The correlation of ranks, from their sums, squares and products."""
        a_N, b_N = (_ranks(values) for values in ([scores[0] for scores in outputs], given(examples, self.column)))
        sums_N6 = np.stack([a_N, b_N, a_N**2, b_N**2, a_N * b_N, np.ones_like(a_N)], 1)
        return {HEADLINE: Figure(sums_N6, correlation, top=1.0, least=self.least)}


def _ranks(values: Sequence[float] | Array) -> Array:
    """Of each value, about 0, equal ones sharing theirs; so small that squares stay exact."""
    _, place_N, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    return np.asarray((ranks - (len(ranks) + 1) / 2) / len(ranks), dtype=np.float64)


def correlation(sums: Array) -> Array:
    """From sums [..., 6] of a, b, their squares, their product, and rows."""
    a, b, aa, bb, ab, rows = np.moveaxis(sums, -1, 0)
    spread = (aa - a * a / rows) * (bb - b * b / rows)
    return np.where(spread > 1e-12, (ab - a * b / rows) / np.sqrt(np.maximum(spread, 1e-12)), 0.0)
