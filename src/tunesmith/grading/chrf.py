"""chrF and chrF++ (Popović 2015, 2017) as sacrebleu computes them."""

from typing import Any, Literal

from pydantic import Field

from .corpus import CorpusGrader
from .extras import extra


class Chrf(CorpusGrader):
    """Corpus chrF of the answers against the gold answers, from 0 to 100; it needs no word tokenizer."""

    kind: Literal["chrf"] = "chrf"
    char_order: int = Field(default=6, ge=1)
    """Longest run of characters compared."""
    word_order: int = Field(default=0, ge=0)
    """Longest run of words compared; 2 is chrF++."""
    lowercase: bool = False
    """Whether case is ignored."""

    @property
    def unit(self) -> str:  # type: ignore[override]
        """What sacrebleu calls it."""
        return "chrF++" if self.word_order == 2 else "chrF"

    def metric(self, sentence: bool = False) -> Any:
        """sacrebleu's CHRF, the same for both."""
        metrics = extra("sacrebleu.metrics")
        return metrics.CHRF(char_order=self.char_order, word_order=self.word_order, lowercase=self.lowercase)
