"""What BLEU, chrF and TER share: sacrebleu's metrics as figures over sums of their segment statistics."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.example import Example

from .base import HEADLINE, AnswerGrader, Score
from .statistics import Array, Figure


class CorpusGrader(AnswerGrader):
    """A sacrebleu metric with one reference per row; its figure is sacrebleu's corpus score.

    The statistics are taken and summed the way sacrebleu's own significance tests do it.
    """

    top: ClassVar[float | None] = 100.0
    """The best score where 0 is the worst; None where there is no such limit."""

    @abstractmethod
    def metric(self, sentence: bool = False) -> Any:
        """The sacrebleu metric, as it is meant for a corpus or for one sentence."""

    def score(self, answer: str, example: Example) -> Score:
        """The sentence score as a fraction of one hit; the corpus score is not the mean of these."""
        found = self.metric(sentence=True).sentence_score(answer, [example.gold])
        return Score(found.score / 100.0, 1.0)

    def figures(self, examples: Sequence[Example], outputs: Sequence[str]) -> dict[str, Figure]:
        """The corpus score."""
        metric = self.metric()
        statistics = metric._extract_corpus_statistics(list(outputs), [[example.gold for example in examples]])

        def value(sums: Array) -> Array:
            rows = sums.reshape(-1, sums.shape[-1]).astype(int)
            scores = [metric._compute_score_from_stats(row.tolist()).score for row in rows]
            return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])

        return {HEADLINE: Figure(np.array(statistics, dtype=np.float64), value, top=self.top, least=0.0)}

    @property
    def signature(self) -> str:
        """sacrebleu's own signature, for one reference."""
        metric = self.metric()
        metric.corpus_score(["a"], [["a"]])  # the number of references is known only after a score
        return f"{self.kind}|{metric.get_signature().format()}"
