"""Mean squared error of a reward model's scores against those that people gave."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.base import DataError
from tunesmith.data.example import Example

from .base import HEADLINE, Grader, Reads
from .statistics import Array, Figure


class ScoreError(Grader):
    """How far scores are from those that people gave: the mean of squared differences."""

    kind: Literal["score_error"] = "score_error"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    unit: ClassVar[str] = "squared error"
    digits: ClassVar[int] = 3
    reads: ClassVar[Reads] = "scores"
    column: str = "score"
    """Column with the score that people gave."""

    def figures(self, examples: Sequence[Example], outputs: Sequence[Sequence[float]]) -> dict[str, Figure]:
        """The mean, over rows."""
        apart_N = np.array([scores[0] for scores in outputs]) - given(examples, self.column)
        return {HEADLINE: Figure(np.stack([apart_N**2, np.ones_like(apart_N)], 1), mean, least=0.0)}


def given(examples: Sequence[Example], column: str) -> Array:
    """What people gave, float64 [N].

    Raises:
        DataError: an example does not say it.
    """
    for example in examples:
        if column not in example.columns:
            raise DataError(f"{example.origin}: has no column {column!r}; name the field in prepare.columns")
    return np.array([example.columns[column] for example in examples], dtype=np.float64)


def mean(sums: Array) -> Array:
    """From sums [..., 2] of values and of rows."""
    return np.asarray(sums[..., 0] / sums[..., 1])
