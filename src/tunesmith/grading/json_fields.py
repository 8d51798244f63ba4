"""Extraction: which fields of the gold JSON object the answer's JSON object has right."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.base import DataError
from tunesmith.data.example import Example

from .base import AnswerGrader, Score
from .reading import Reading, canonical, read_object
from .statistics import Array, Figure

VALID = "valid JSON"
MACRO = "macro F1"


class JsonFields(AnswerGrader):
    """Share of the gold fields that are right (micro: every field of every row counts once).

    A field too many costs nothing. Parts: the accuracy of each field, its macro F1 (each class counts alike, so the
    long tail shows), and how many answers were JSON objects.
    """

    kind: Literal["json_fields"] = "json_fields"
    unit: ClassVar[str] = "% of fields"
    reading: Reading = "lenient"
    """`lenient`: the first JSON object in the answer counts, also inside a markdown fence or a sentence, so that a
    difference between systems is not one of wrapping. `strict`: the whole answer is one JSON object, or is wrong."""
    ignore_case: bool = True
    """Whether `CLI` equals `cli`; runs of blanks never matter, and 1 equals 1.0."""

    def score(self, answer: str, example: Example) -> Score:
        """Hits among the gold fields."""
        gold, found = self._gold(example), self._fields(answer)
        parts = {name: (float(found.get(name) == value), 1.0) for name, value in gold.items()}
        wrong = [
            f"{name}: {found.get(name, 'missing')}, expected {gold[name]}"
            for name, (hit, _) in parts.items()
            if not hit
        ]
        valid = read_object(answer, self.reading) is not None
        text = "; ".join(wrong) if valid else "not a JSON object"
        return Score(
            sum(hit for hit, _ in parts.values()), float(len(parts)), {**parts, VALID: (float(valid), 1.0)}, text
        )

    def figures(self, examples: Sequence[Example], outputs: Sequence[str]) -> dict[str, Figure]:
        """The headline, each field's accuracy and macro F1, and the share of valid answers."""
        figures = super().figures(examples, outputs)
        golds, found = [self._gold(example) for example in examples], [self._fields(answer) for answer in outputs]
        for name in dict.fromkeys(name for gold in golds for name in gold):
            truths = [gold.get(name) for gold in golds]
            classes = sorted({truth for truth in truths if truth is not None})
            if 2 * len(classes) <= sum(
                truth is not None for truth in truths
            ):  # else it is free text, which has no classes
                guesses = [
                    fields.get(name) if name in gold else None for fields, gold in zip(found, golds, strict=True)
                ]
                figures[f"{name} {MACRO}"] = Figure(_confusion(truths, guesses, classes), macro_f1, top=100.0)
        return figures

    def _fields(self, answer: str) -> dict[str, str]:
        found = read_object(answer, self.reading) or {}
        return {name: canonical(value, self.ignore_case) for name, value in found.items()}

    def _gold(self, example: Example) -> dict[str, str]:
        gold = read_object(example.gold, "strict")
        if gold is None:
            raise DataError(
                f"{example.origin}: {self.kind!r} needs a JSON object as the answer; use the grader 'exact'"
            )
        return {name: canonical(value, self.ignore_case) for name, value in gold.items()}


def macro_f1(sums: Array) -> Array:
    """Mean over classes of F1 in percent, from sums [..., 3C] of true positives, guesses and truths per class.

    A class without a truth (it may drop out of a bootstrap sample) is left out of the mean.
    """
    hits, guesses, truths = np.split(sums, 3, axis=-1)
    present = truths > 0
    f1 = np.where(present, 2.0 * hits / np.maximum(guesses + truths, 1.0), 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(100.0 * f1.sum(axis=-1) / present.sum(axis=-1))


def _confusion(truths: Sequence[str | None], guesses: Sequence[str | None], classes: Sequence[str]) -> Array:
    """Statistics [N, 3C] of `macro_f1`; a guess outside the classes is only a miss of the true one."""
    number = {name: index for index, name in enumerate(classes)}
    counted = np.zeros((len(truths), 3, len(classes)))
    for row, (truth, guess) in enumerate(zip(truths, guesses, strict=True)):
        if truth is not None:
            counted[row, 2, number[truth]] = 1.0
        if guess in number:
            counted[row, 1, number[guess]] = 1.0
            counted[row, 0, number[guess]] = float(guess == truth)
    return counted.reshape(len(truths), -1)
