"""Pairwise accuracy of a reward model: the share of pairs of which it scores the chosen answer higher."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.base import DataError
from tunesmith.data.example import Example

from .base import HEADLINE, Grader, Reads
from .statistics import Figure, share


class Pairwise(Grader):
    """Whether a reward model prefers what people preferred; two scores that are equal are half right."""

    kind: Literal["pairwise"] = "pairwise"
    unit: ClassVar[str] = "% of pairs"
    reads: ClassVar[Reads] = "scores"

    def figures(self, examples: Sequence[Example], outputs: Sequence[Sequence[float]]) -> dict[str, Figure]:
        """The share, over rows."""
        for example, scores in zip(examples, outputs, strict=True):
            if len(scores) != 2:
                raise DataError(
                    f"{example.origin}: {len(scores)} answers; pairwise compares a chosen and a rejected one"
                )
        apart_N = np.array([chosen - rejected for chosen, rejected in outputs])
        hits_N = (1 + np.sign(apart_N)) / 2
        return {HEADLINE: Figure(np.stack([hits_N, np.ones_like(hits_N)], 1), share, top=100.0)}
