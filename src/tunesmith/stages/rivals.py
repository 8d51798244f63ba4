"""Rivals: what the majority class and TF-IDF with a linear SVM answer to the test rows, having learnt from the rows that a training has."""

from tunesmith.base import Artifact, Output, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.grading.baselines import majority, svm

from .finetune import Finetune


class Rivals(Spec):
    """What they learn from and are asked."""

    rows: int | None
    """Training rows, chosen as for `finetune.rows`; null takes all."""
    test_rows: int | None
    """Most test rows; null takes all."""


def rivals(spec: Rivals, prepared: Artifact, *, out: Output, seed: int) -> None:
    """Write `answers.json`: of each that this task allows for, an answer to every test row."""
    examples, test = load_examples(prepared.path, "train"), load_examples(prepared.path, "test", spec.test_rows)
    places = Finetune(rows=spec.rows).places(load_split(prepared.path, "train"), seed)
    train = [examples[place] for place in places]
    made = {"majority": majority(train, test), "svm": svm(train, test)}
    write_json(out / "answers.json", {name: each.answers for name, each in made.items() if each.answers is not None})
    out.metrics.update({name: each.reason for name, each in made.items()})


STAGE = Stage("rivals", 2, rivals)
