"""Classification where classes are unequal: macro F1, and beside it micro F1, Cohen's kappa, what is found of the rarest, and each class."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from tunesmith.base import DataError
from tunesmith.data.classes import ANSWER, facets
from tunesmith.data.example import Example

from .base import HEADLINE, AnswerGrader, Score
from .confusion import MOST_CLASSES, Label, confusion, f1, kappa, macro_f1, micro_f1, precision
from .reading import Reading, read_object
from .statistics import Figure, share

LEAST, MOST = 10, 20
"""Fewest rows of a class that is told of by itself, and most such classes, the largest first."""
MICRO, KAPPA, RARE = "micro F1", "kappa", "rare recall"


def in_the_answer(by: str) -> str:
    """A path to a class, refused where it does not lead into the answer."""
    if by.split(".")[0] != ANSWER:
        raise ValueError("a class is read from the answer: write answer, answer.FIELD or answer.*")
    return by


class Classes(AnswerGrader):
    """Macro F1: every class counts alike, however few rows it has. For tasks where a class is rare and matters.

    Parts: micro F1, Cohen's kappa (times 100; left out where a row has several values of a field), the recall of the rarest classes
    together, and precision, recall and F1 of each class with at least ten rows. More than 500 classes are refused.
    """

    kind: Literal["classes"] = "classes"
    unit: ClassVar[str] = "points of macro F1"
    summaries: ClassVar[tuple[str, ...]] = (MICRO, KAPPA, RARE)
    by: str = ANSWER
    """Where the class stands: `answer` is the whole answer, `answer.role` a field of a JSON object, `answer.*` every field that the right answer
    has, each value of each a class."""
    reading: Reading = "lenient"
    """`lenient`: the first JSON object in the answer counts. `strict`: the whole answer is one JSON object, or is wrong."""
    ignore_case: bool = True
    """Whether `CLI` equals `cli`; runs of blanks never matter."""
    rare: float = Field(0.1, ge=0, le=1)
    """Share of all right values that the rarest classes together have at most, of which `rare recall` tells."""

    _by = field_validator("by")(in_the_answer)

    def score(self, answer: str, example: Example) -> Score:
        """Hits among the right values."""
        gold, found = self._gold(example), self._labels(answer, self.reading)
        wrong = ", ".join(sorted(spoken(label) for label in gold - found))
        return Score(float(len(gold & found)), float(len(gold)), text=f"expected {wrong}" if wrong else "")

    def figures(self, examples: Sequence[Example], outputs: Sequence[str]) -> dict[str, Figure]:
        """Macro F1, the summaries, and each class.

        Raises:
            DataError: no row has a class, or rows have more than `MOST_CLASSES`.
        """
        truths = [self._gold(example) for example in examples]
        guesses = [
            {label for label in self._labels(answer, self.reading) if label[0] in {name for name, _ in true}}
            for answer, true in zip(outputs, truths, strict=True)
        ]
        counts = Counter(label for true in truths for label in true)
        if not counts:
            raise DataError(
                f"{examples[0].origin}: {self.kind!r} finds no {self.by!r} in {len(examples)} rows; mend `by`"
            )
        if len(counts) > MOST_CLASSES:
            raise DataError(
                f"{examples[0].origin}: {self.kind!r} by {self.by!r} finds {len(counts):,} classes in {len(examples):,} rows, and tells of {MOST_CLASSES} at most; mend `by`, or use the grader 'exact' or 'json_fields'"
            )
        classes = sorted(counts)
        statistics = confusion(truths, guesses, classes)
        figures = {HEADLINE: Figure(statistics, macro_f1, 100.0), MICRO: Figure(statistics, micro_f1, 100.0)}
        fields = [name for name, _ in classes]
        if len(classes) > len(set(fields)) and all(len(true) == len({name for name, _ in true}) for true in truths):
            figures[KAPPA] = Figure(statistics, kappa(fields), 100.0, least=-100.0)
        columns = {label: [kind * len(classes) + place for kind in range(3)] for place, label in enumerate(classes)}
        own = {label: statistics[:, found] for label, found in columns.items()}
        if tail := self._tail(counts):
            figures[RARE] = Figure(np.sum([own[label][:, [0, 2]] for label in tail], axis=0), share, 100.0)
        for label, count in counts.most_common(MOST):
            if count >= LEAST:
                figures[f"{spoken(label)}: precision"] = Figure(own[label], precision, 100.0)
                figures[f"{spoken(label)}: recall"] = Figure(own[label][:, [0, 2]], share, 100.0)
                figures[f"{spoken(label)}: F1"] = Figure(own[label], f1, 100.0)
        return figures

    def _tail(self, counts: Counter[Label]) -> list[Label]:
        """The rarest classes that together have at most the share `rare` of all values."""
        room, found = self.rare * counts.total(), []
        for label in sorted(counts, key=lambda label: (counts[label], label)):
            room -= counts[label]
            if room < 0:
                break
            found.append(label)
        return found

    def _gold(self, example: Example) -> set[Label]:
        found = self._labels(example.gold, "strict")
        if not found and self.by != ANSWER and read_object(example.gold, "strict") is None:
            raise DataError(
                f"{example.origin}: {self.kind!r} by {self.by!r} needs a JSON object as the answer; set by=answer"
            )
        return found

    def _labels(self, text: str, reading: Reading) -> set[Label]:
        _, *parts = self.by.split(".")
        tree = (read_object(text, reading) or {}) if parts else text
        return {(name, normal(value, self.ignore_case)) for name, value in facets(tree, parts)}


def normal(value: str, ignore_case: bool) -> str:
    """One text for all that are the same class."""
    text = " ".join(unicodedata.normalize("NFC", value).split())
    return text.casefold() if ignore_case else text


def spoken(label: Label) -> str:
    """A class as people read it."""
    name, value = label
    return f"{name}={value}" if name else value
