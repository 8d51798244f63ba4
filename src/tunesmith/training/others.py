"""What other models say of the rows, computed once before training: each is loaded in turn and let go of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tunesmith.base import DataError, ModelError
from tunesmith.data.example import Example, Row
from tunesmith.data.example import Sequence as Tokens
from tunesmith.data.render import Renderer
from tunesmith.kernels.memory import give_back
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.base import TAUGHT, TAUGHT_LOGP, Teaching, reference
from tunesmith.models.load import Loaded, Precision, load, load_config, load_tokenizer, locate

from .reference import with_references, with_teacher


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
    today: str | None = None
    """What the template took for today when the rows were made, if it tells the date."""

    def asked(self, objective: Objective, splits: Sequence[Split]) -> list[list[Row]]:
        """The rows of each split with the log-probabilities of every answer under the objective's other models, and what its teacher says.

        Raises:
            DataError: a row was cut off, and a model with another tokenizer cannot be asked about the same part of it.
            ModelError: a model cannot be had, or is to teach and has another tokenizer.
        """
        rows = [list(split.rows) for split in splits]
        for number, name in enumerate(objective.others, start=1):
            rows = self._scored(name, number, splits, rows)
            give_back()  # the model went with the call
        if objective.teaching is not None and objective.teaching.model is not None:
            check_teacher(objective, self.model)
            rows = self._taught(objective.teaching.model, objective.teaching, rows)
            give_back()
        return rows

    def _scored(self, name: str, number: int, splits: Sequence[Split], rows: list[list[Row]]) -> list[list[Row]]:
        other = load(name, self.precision)
        own, theirs = (
            Renderer(one, self.supervise, self.today) for one in (load_tokenizer(self.model), other.tokenizer)
        )
        found = []
        for split, mine in zip(splits, rows, strict=True):
            read = [as_read(*each, own, theirs, name) for each in zip(mine, split.examples, strict=True)]
            scored = with_references(other, read, self.size, number)
            found.append([replace(row, columns=one.columns) for row, one in zip(mine, scored, strict=True)])
        return found

    def _taught(self, name: str, teaching: Teaching, rows: list[list[Row]]) -> list[list[Row]]:
        teacher = load(name, self.precision)
        known = load_config(locate(self.model)).get_text_config().vocab_size
        return [with_teacher(teacher, each, teaching, self.size, known) for each in rows]


def check_teacher(objective: Objective, model: str) -> None:
    """Refuse a teacher by its tokenizer alone.

    Raises:
        ModelError: it has other tokens than the model's.
    """
    name = objective.teaching.model if objective.teaching is not None else None
    if name is not None and load_tokenizer(name).get_vocab() != load_tokenizer(model).get_vocab():
        raise ModelError(
            f"model {name}: cannot teach {model}, since its tokenizer has other tokens; take a teacher of the same family, or let it "
            "write answers and learn those by objective.kind sft"
        )


def of_start(loaded: Loaded, objective: Objective, rows: list[Row], size: int) -> list[Row]:
    """The rows, `size` of them computed together, with what the objective asks of the model that training starts from, which is `loaded` as it is."""
    if objective.references:
        rows = with_references(loaded, rows, size)
    if objective.teaching is not None and objective.teaching.model is None:
        rows = with_teacher(loaded, rows, objective.teaching, size, loaded.model.config.get_text_config().vocab_size)
    return rows


def imagined_answers(objective: Objective, rows: Sequence[Row]) -> Sequence[Row]:
    """Rows with all that other models will say of them, for estimates: of the right shape, and of no meaning."""
    if objective.references:
        models = range(1 + len(objective.others))
        names = [[reference(answer, model) for answer in range(len(row.sequences)) for model in models] for row in rows]
        rows = [
            replace(row, columns={**row.columns, **dict.fromkeys(mine, -1.0)})
            for row, mine in zip(rows, names, strict=True)
        ]
    if objective.teaching is not None:
        top = objective.teaching.top
        rows = [replace(row, sequences=tuple(_imagined(each, top) for each in row.sequences)) for row in rows]
    return rows


def _imagined(sequence: Tokens, top: int) -> Tokens:
    shape = (int(sequence.learn.sum()), top)
    columns = {TAUGHT: np.broadcast_to(np.int32(0), shape), TAUGHT_LOGP: np.broadcast_to(np.float32(-9), shape)}
    return replace(sequence, columns={**sequence.columns, **columns})


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
