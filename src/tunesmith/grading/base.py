"""What a grader is: it turns answers to held-out examples into figures that can be resampled by row."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.base import DataError, Family
from tunesmith.data.example import Example

from .statistics import Figure, share

Reads = Literal["answers", "likelihoods", "scores", "chances"]
Chances = Mapping[str, Mapping[str, float]]
"""Per field of an answer the probability of each class it may hold; empty of a row that was not asked."""

HEADLINE = "headline"
"""Name of a grader's first figure among its `figures`; the others are its parts."""


def units(examples: Sequence[Example]) -> NDArray[np.int64] | None:
    """Number of the unit that each row is of: its author or whatever `prepare.group` names, else its origin, which parts of a text share; None where no two share one."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(example.unit or example.origin, len(numbers)) for example in examples]
    return None if len(numbers) == len(examples) else np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Score:
    """One answer's grade: `hits` of `total` things are right, and so for each named part."""

    hits: float
    total: float
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    text: str = ""
    """What was wrong, for a person to read; empty if nothing was."""

    @property
    def share(self) -> float:
        """Hits over total, from 0 to 1; 1 where nothing was asked."""
        return self.hits / self.total if self.total else 1.0


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds one example's supervised tokens."""

    loss: float
    """Sum of the negative log-likelihoods in nats."""
    tokens: int
    """Number of tokens it sums over."""


class Grader(Family):
    """How outputs are judged. A member is one file: fields, and `score` (or `figures`, where a row has no score)."""

    better: ClassVar[Literal["higher", "lower"]] = "higher"
    unit: ClassVar[str] = "% of rows"
    digits: ClassVar[int] = 1
    """Decimals that its figures are worth: one on a scale of a hundred, more on a small one."""
    reads: ClassVar[Reads] = "answers"
    """What `figures` is given per example: one answer (str), one Likelihood, the scores (floats) that a reward model gives its answers, or Chances."""
    judges_calls: ClassVar[bool] = False
    """Whether it can judge rows that are to end with calls of tools."""
    least: ClassVar[float] = 0.0
    """What no headline of it is below."""
    summaries: ClassVar[tuple[str, ...]] = ()
    """Parts that speak of all rows, to be told where there is room for few."""

    @property
    def called(self) -> str:
        """What results, gates and messages call it."""
        return self.kind

    @abstractmethod
    def figures(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, Figure]:
        """One system's figures over all examples: the `headline`, then parts by name.

        Raises:
            DataError: an example cannot be graded this way.
            MachineError: a package is missing.
        """

    def graded(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, Figure]:
        """`figures`, of which rows that belong together are drawn as one: parts of a text, and what `prepare.group` keeps together."""
        unit_N = units(examples)
        return {name: replace(figure, unit_N=unit_N) for name, figure in self.figures(examples, outputs).items()}

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples that it cannot grade, before there is a model to ask: one that reads answers has to be able to judge the right ones.

        Raises:
            DataError: as `figures`.
            MachineError: a package is missing.
        """
        if self.reads == "answers":
            self.figures(examples, [example.gold for example in examples])

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files, beside the rows, that its judgement comes from."""
        return ()

    @property
    def memory(self) -> int:
        """Bytes that it holds while it judges, where it is a model itself."""
        return 0

    @property
    def signature(self) -> str:
        """Everything that must be equal for two results to be comparable."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


class Paying(Grader):
    """A grader that can say what one answer is worth by itself, so that rollouts can be paid by it."""

    @abstractmethod
    def worth(self, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """What each answer is worth, given the example that it answers; many at a time, for those that are quicker so."""


class AnswerGrader(Paying):
    """A grader that can judge one answer by itself; its figures are shares."""

    @abstractmethod
    def score(self, answer: str, example: Example) -> Score:
        """Grade one answer against the example's gold answer."""

    def worth(self, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """The share that is right, from 0 to 1."""
        return [self.score(answer, example).share for answer, example in zip(answers, examples, strict=True)]

    def figures(self, examples: Sequence[Example], outputs: Sequence[str]) -> dict[str, Figure]:
        """Ratios of sums: every thing counts once, however many a row has."""
        scores = [self.score(answer, example) for answer, example in zip(outputs, examples, strict=True)]
        if not any(score.total for score in scores):
            count = len(examples)
            raise DataError(
                f"{examples[0].origin}: {self.kind!r} finds nothing to grade in {count} rows; use another grader"
            )
        counted = {HEADLINE: [(score.hits, score.total) for score in scores]}
        for name in dict.fromkeys(name for score in scores for name in score.parts):
            counted[name] = [score.parts.get(name, (0.0, 0.0)) for score in scores]
        return {name: Figure(np.array(pairs, dtype=np.float64), share, top=100.0) for name, pairs in counted.items()}
