"""BM25 (Robertson and Zaragoza, 2009): shared words count, rare ones more, in long texts less; computed by bm25s (arXiv:2407.03618)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tunesmith.base.extras import extra

from ..wording import split_words
from .base import Index, Retriever


class BM25(Retriever):
    """Find texts by the words that they share with the question."""

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(1.5, ge=0)
    """How soon a word that a text repeats stops counting for more; 0 counts it once."""
    b: float = Field(0.75, ge=0, le=1)
    """How much a text's length counts against it."""

    def index(self, texts: Sequence[str]) -> Index:
        """Count words; no word is left out, since common ones weigh next to nothing."""
        made = extra("bm25s", "eval", "retriever bm25").BM25(k1=self.k1, b=self.b, method="lucene")
        split = [split_words(text) for text in texts]
        known = {word for each in split for word in each}
        if known:
            made.index(split, show_progress=False)

        def scores(questions: Sequence[str]) -> NDArray[np.float64]:
            asked = [[word for word in split_words(question) if word in known] for question in questions]
            found = [made.get_scores(each) if each else np.zeros(len(texts)) for each in asked]
            return np.array(found, dtype=np.float64).reshape(len(asked), len(texts))

        return Index(f"BM25 (k1={self.k1:g}, b={self.b:g})", scores)
