"""Validity: the answer can be read as a JSON object at all."""

from typing import Literal

from tunesmith.data.example import Example

from .base import AnswerGrader, Score
from .reading import Reading, read_object


class JsonValid(AnswerGrader):
    """Share of answers that a program could read as a JSON object; `json_fields` looks at what it says."""

    kind: Literal["json_valid"] = "json_valid"
    reading: Reading = "strict"
    """`strict`: the whole answer is one JSON object. `lenient`: one stands somewhere in the answer."""

    def score(self, answer: str, example: Example) -> Score:
        """One hit of one, or none."""
        valid = read_object(answer, self.reading) is not None
        return Score(float(valid), 1.0, text="" if valid else "not a JSON object")
