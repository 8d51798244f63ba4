"""Extraction: which fields of the gold JSON object the answer's JSON object has right."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from tunesmith.base import DataError
from tunesmith.data.example import Example

from .base import HEADLINE, AnswerGrader, Score
from .confusion import MOST_CLASSES, Label, confusion, macro_f1
from .reading import Reading, canonical, read_object
from .statistics import Figure

VALID = "valid JSON"
MACRO = "macro F1"


class JsonFields(AnswerGrader):
    """Share of the gold fields that are right (micro: every field of every row counts once).

    A field too many costs nothing. Parts: the accuracy of each field, its macro F1 (each class counts alike, so the
    long tail shows; not of free text, nor of more than 500 classes), and how many answers were JSON objects.
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
        hits = {name: float(found.get(name) == value) for name, value in gold.items()}
        parts = {part_name(name): (hit, 1.0) for name, hit in hits.items()}
        wrong = [
            f"{name}: {found.get(name, 'missing')}, expected {gold[name]}" for name, hit in hits.items() if not hit
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
            told = sum(truth is not None for truth in truths)
            if len(classes) <= min(
                MOST_CLASSES, told / 2
            ):  # with more for so many rows it is free text, which has none
                asked = [_label(name, gold) for gold in golds]
                guesses = [_label(name, fields) if label else set() for fields, label in zip(found, asked, strict=True)]
                statistics = confusion(asked, guesses, [(name, value) for value in classes])
                figures[f"{part_name(name)} {MACRO}"] = Figure(statistics, macro_f1, top=100.0)
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


def _label(name: str, fields: Mapping[str, str]) -> set[Label]:
    return {(name, fields[name])} if name in fields else set()


def part_name(field: str) -> str:
    """What the figure of a field is called: its own name, unless figures of another kind are called so."""
    return f"field {field}" if field in (HEADLINE, VALID) else field
