"""BLEU (Papineni et al. 2002) as sacrebleu computes it (Post 2018)."""

from typing import Any, ClassVar, Literal

from .corpus import CorpusGrader
from .extras import extra


class Bleu(CorpusGrader):
    """Corpus BLEU of the answers against the gold answers, from 0 to 100."""

    kind: Literal["bleu"] = "bleu"
    unit: ClassVar[str] = "BLEU"
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """sacrebleu's tokenizer: `13a` for most languages, `char` for those without blanks, `zh` for Chinese."""
    lowercase: bool = False
    """Whether case is ignored."""

    def metric(self, sentence: bool = False) -> Any:
        """sacrebleu's BLEU; for a sentence shorter than four words it leaves out the n-grams that cannot occur."""
        metrics = extra("sacrebleu.metrics")
        return metrics.BLEU(tokenize=self.tokenize, lowercase=self.lowercase, effective_order=sentence)
