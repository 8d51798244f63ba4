"""Average precision, the area under the precision-recall curve, of each class by the probability that a model gives it among all (Davis and Goadrich, 2006)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from tunesmith.base import DataError
from tunesmith.data.choices import Place, places
from tunesmith.data.classes import ANSWER
from tunesmith.data.example import Example

from .base import HEADLINE, Chances, Grader, Reads
from .classes import LEAST, MOST, in_the_answer, normal, spoken
from .ranked import Ranked, mean_precision, mean_prevalence
from .reading import read_object
from .statistics import Array, Figure

CHANCE = "by chance"

Asked = Mapping[str, Mapping[str, str]]
"""Per field the whole answer that each of its classes would make."""


class AveragePrecision(Grader):
    """Average precision (PR-AUC), macro and of each class: whether rows of a class get more of its probability than others, whatever is answered in the end.

    The probability of class c of a field is that of the right answer with c in the field's place, over the sum of these for all classes of the field:
    p(c) = exp(l_c) / sum_k exp(l_k), where l_c is the log-likelihood of that answer, end token included, given the prompt. It is the model's belief about
    one field where the others are known to be right, those written after it too; what precedes the first token in which the answers
    differ cancels. The classes of a field are those that the test rows asked have, so that they are the same for all that is compared.

    Parts: what ranking by chance comes to (the mean prevalence), and average precision and prevalence of each class with at least ten rows.
    """

    kind: Literal["average_precision"] = "average_precision"
    unit: ClassVar[str] = "points of macro average precision"
    reads: ClassVar[Reads] = "chances"
    summaries: ClassVar[tuple[str, ...]] = (CHANCE,)
    by: str = ANSWER
    """Where the class stands: `answer` is the whole answer, `answer.role` a field of a JSON object, `answer.*` each of its fields; fields that hold lists
    are refused."""
    rows: int = Field(200, ge=1)
    """Most test rows that are asked, drawn by chance, always the same ones. A row costs as much as reading one answer for each class of each of its fields."""
    classes: int = Field(50, ge=2)
    """Most classes of a field; one with more is refused, as free text or too dear."""
    ignore_case: bool = True
    """Whether `CLI` equals `cli`; runs of blanks never matter."""

    _by = field_validator("by")(in_the_answer)

    def asked(self, test: Sequence[Example]) -> list[Asked]:
        """What is to be scored of each test row; nothing of those beyond `rows`, and of fields with one class.

        Raises:
            DataError: an answer is no JSON object though `by` names a field of it, a field holds a list or more than `classes` values, or none
                has two.
        """
        drawn = np.sort(np.random.default_rng(0).permutation(len(test))[: self.rows]).tolist()
        chosen, found = [test[place] for place in drawn], [self._places(test[place]) for place in drawn]
        held: dict[str, dict[str, str]] = {}
        for example, each in zip(chosen, found, strict=True):
            for place in each:
                label, written = normal(place.value, self.ignore_case), example.gold[place.start : place.stop]
                held.setdefault(place.name, {}).setdefault(label, written)
        largest = max(held.values(), key=len, default={})
        if not 2 <= len(largest) <= self.classes:
            mend = (
                "; mend `by`"
                if len(largest) < 2
                else f", which is more than {self.classes}; mend `by`, or raise `classes`"
            )
            raise DataError(
                f"{test[0].origin}: {self.kind!r} by {self.by!r} finds {len(largest)} classes in {len(found)} rows{mend}"
            )
        classes = {name: dict(sorted(each.items())) for name, each in held.items() if len(each) > 1}
        asked: list[Asked] = [{} for _ in test]
        for number, example, each in zip(drawn, chosen, found, strict=True):
            asked[number] = {
                place.name: _answers(example.gold, place, classes[place.name])
                for place in each
                if place.name in classes
            }
        return asked

    def figures(self, examples: Sequence[Example], outputs: Sequence[Chances]) -> dict[str, Figure]:
        """Macro average precision, what chance comes to, and each class.

        Raises:
            DataError: no row that was asked is of a class.
        """
        names = sorted({(field, label) for each in outputs for field, known in each.items() for label in known})
        score_NC, truth_NC = np.full((2, len(examples), len(names)), np.nan)
        for number, (example, each) in enumerate(zip(examples, outputs, strict=True)):
            right = (
                {place.name: normal(place.value, self.ignore_case) for place in self._places(example)} if each else {}
            )
            for column, (field, label) in enumerate(names):
                if field in each:
                    score_NC[number, column] = each[field][label]
                    truth_NC[number, column] = right[field] == label
        counts = Counter({name: int((truth_NC[:, column] == 1).sum()) for column, name in enumerate(names)})
        held = [column for column, name in enumerate(names) if counts[name]]
        if not held:
            raise DataError(
                f"{examples[0].origin}: {self.kind!r} finds no row of a class in {len(examples)} rows; mend `by`"
            )
        whole = np.hstack([score_NC[:, held], truth_NC[:, held]])
        figures: dict[str, Figure] = {
            HEADLINE: Ranked(whole, mean_precision, 100.0), CHANCE: Ranked(whole, mean_prevalence)
        }  # fmt: skip
        for name, count in counts.most_common(MOST):
            if count >= LEAST:
                own: Array = np.stack([each[:, names.index(name)] for each in (score_NC, truth_NC)], axis=1)
                figures[f"{spoken(name)}: average precision"] = Ranked(own, mean_precision, 100.0)
                figures[f"{spoken(name)}: prevalence"] = Ranked(own, mean_prevalence)
        return figures

    def _places(self, example: Example) -> list[Place]:
        _, *parts = self.by.split(".")
        if parts and read_object(example.gold, "strict") is None:
            raise DataError(
                f"{example.origin}: {self.kind!r} by {self.by!r} needs a JSON object as the answer; set by=answer"
            )
        try:
            return list(places(example.gold, parts))
        except DataError as error:
            raise DataError(f"{example.origin}: {error}; name other fields in `by`") from None


def _answers(text: str, place: Place, classes: Mapping[str, str]) -> dict[str, str]:
    """The answer that each class in this place makes, as the first test row of that class wrote it."""
    return {label: text[: place.start] + written + text[place.stop :] for label, written in classes.items()}
