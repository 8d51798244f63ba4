"""Exact match: the answer is the gold answer, after a stated normalisation."""

import unicodedata
from typing import Literal

from tunesmith.data.example import Example

from .base import AnswerGrader, Score


class Exact(AnswerGrader):
    """Share of answers equal to the gold answer; both are first brought to Unicode NFC, without blanks at the ends."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = False
    """Whether `Yes` equals `yes`."""
    ignore_blanks: bool = True
    """Whether a run of blanks or line breaks equals one blank."""

    def score(self, answer: str, example: Example) -> Score:
        """One hit of one, or none."""
        same = self._normal(answer) == self._normal(example.gold)
        return Score(float(same), 1.0, text="" if same else f"expected {example.gold!r}")

    def _normal(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text).strip()
        text = " ".join(text.split()) if self.ignore_blanks else text
        return text.casefold() if self.ignore_case else text
