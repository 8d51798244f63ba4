"""TER, the translation edit rate (Snover et al. 2006), as sacrebleu computes it."""

from typing import Any, ClassVar, Literal

from tunesmith.data.example import Example

from .base import Score
from .corpus import CorpusGrader
from .extras import extra


class Ter(CorpusGrader):
    """Edits that turn the answers into the gold answers, per hundred of their words; a run of words that is moved is one edit. Lower is better."""

    kind: Literal["ter"] = "ter"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    unit: ClassVar[str] = "TER"
    top: ClassVar[float | None] = None
    normalized: bool = False
    """Whether punctuation is parted from words first."""
    punctuation: bool = True
    """Whether punctuation counts."""
    asian: bool = False
    """Whether Chinese and Japanese characters count one by one; needs `normalized`."""
    case_sensitive: bool = False
    """Whether case counts."""

    def metric(self, sentence: bool = False) -> Any:
        """sacrebleu's TER, the same for both."""
        return extra("sacrebleu.metrics").TER(
            normalized=self.normalized, no_punct=not self.punctuation, asian_support=self.asian, case_sensitive=self.case_sensitive
        )  # fmt: skip

    def score(self, answer: str, example: Example) -> Score:
        """One hit less the edits per word, and none at all beyond one edit a word."""
        return Score(max(0.0, 1.0 - super().score(answer, example).hits), 1.0)
