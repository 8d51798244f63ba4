"""The rows that a training learns from and those it is watched on, with what other models say of them."""

from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.base import Artifact
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.models.load import Precision, served
from tunesmith.training.others import Others, Split

from .remembered import shown_besides

if TYPE_CHECKING:
    from .finetune import Finetune


def splits(spec: "Finetune", prepared: Artifact, model: str, precision: Precision, seed: int) -> list[Split]:
    """What is learnt from and what validation looks at, as the objective reads it, with what other models say of it.

    Raises:
        DataError: the objective cannot learn from a row, or there are fewer than are wanted.
        ModelError: another model cannot be had.
    """
    train, held_out = (load_split(prepared.path, name) for name in ("train", "validation"))
    examples, places = load_examples(prepared.path, "train"), spec.places(train, seed)
    train = [train[place] for place in places]
    spec.objective.check([*train, *held_out])
    more, said = shown_besides(prepared, model, seed)
    if train and "label" in train[0].columns:  # of rows that were judged one by one; these are as good
        more = [replace(row, columns={"label": 1.0}) for row in more]
    rows, looked = [*spec.balance.weighted(train), *more], spec.validation.rows
    found = [
        Split(list(spec.objective.arranged(rows)), [*(examples[place] for place in places), *said]),
        Split(
            list(spec.objective.arranged(load_split(prepared.path, "validation", looked))),
            load_examples(prepared.path, "validation", looked),
        ),
    ]
    size, about = spec.micro_batch or spec.batch, prepared.manifest["spec"]
    others = Others(model, served(precision), size, about["supervise"], rendered_on(prepared.path))
    return [replace(one, rows=rows) for one, rows in zip(found, others.asked(spec.objective, found), strict=True)]
