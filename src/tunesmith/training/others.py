"""What other models say of the rows, computed once before training: each is loaded in turn and let go of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.base import DataError
from tunesmith.data.example import Example, Row
from tunesmith.data.render import Renderer
from tunesmith.kernels.memory import give_back
from tunesmith.methods.objectives import Objective
from tunesmith.models.load import Loaded, Precision, load, load_tokenizer

from .reference import with_references


@dataclass(frozen=True)
class Split:
    """Rows with what they were made of."""

    rows: Sequence[Row]
    examples: Sequence[Example]


@dataclass(frozen=True)
class Others:
    """How other models are asked."""

    model: str
    """The one that training starts from; its tokenizer made the rows."""
    precision: Precision
    size: int
    """Rows that are computed together."""
    supervise: Literal["answers", "all"]
    """What of a row is learnt, and scored."""

    def asked(self, objective: Objective, splits: Sequence[Split]) -> list[list[Row]]:
        """The rows of each split with the log-probabilities of every answer under the objective's other models.

        Raises:
            DataError: a row was cut off, and a model with another tokenizer cannot be asked about the same part of it.
            ModelError: a model cannot be had.
        """
        rows = [list(split.rows) for split in splits]
        for number, name in enumerate(objective.others, start=1):
            other = load(name, self.precision)
            rows = [self._scored(other, split, mine, number) for split, mine in zip(splits, rows, strict=True)]
            del other
            give_back()
        return rows

    def _scored(self, other: Loaded, split: Split, rows: Sequence[Row], number: int) -> list[Row]:
        own, theirs = (Renderer(one, self.supervise) for one in (load_tokenizer(self.model), other.tokenizer))
        read = [as_read(*each, own, theirs, other.name) for each in zip(rows, split.examples, strict=True)]
        scored = with_references(other, read, self.size, number)
        return [replace(row, columns=found.columns) for row, found in zip(rows, scored, strict=True)]


def as_read(row: Row, example: Example, own: Renderer, theirs: Renderer, name: str) -> Row:
    """A row as another model reads its text: the same tokens if its tokenizer makes the same of it, else by its own tokenizer and template.

    Raises:
        DataError: the tokens differ, and the row holds only the beginning of the text.
    """
    other = theirs.row(example)
    if all(map(_begins, row.sequences, other.sequences)):
        return row
    if len(own.row(example)) > len(row):
        raise DataError(
            f"{row.origin}: was cut off at {len(row):,} tokens, and {name}, which has another tokenizer, cannot score the same part; raise "
            "prepare.max_tokens, or take a model with the same tokenizer"
        )
    return replace(other, columns=row.columns)


def _begins(sequence: Any, whole: Any) -> bool:
    """Whether a sequence is how another begins."""
    return bool((whole.tokens[: len(sequence)] == sequence.tokens).all()) if len(whole) >= len(sequence) else False
