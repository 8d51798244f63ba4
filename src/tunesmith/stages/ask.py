"""Ask: a tuned model's answers to the test rows and nothing else, for comparisons of many trainings; or those of its base."""

from typing import Any

from tunesmith.base import Artifact, DataError, Output, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.grading.average_precision import AveragePrecision
from tunesmith.models.generate import Sampling
from tunesmith.models.load import Precision, load, served

from .chances import chances
from .evaluate import Evaluate
from .judge import answer, likelihoods, merge, worked


class Ask(Spec):
    """What a tuned model is asked."""

    rows: int | None
    """Most test rows; null takes all."""
    max_tokens: int
    """Length of an answer."""
    likelihoods: bool
    """Whether it is wanted how likely the right answers are."""
    chances: AveragePrecision | None = None
    """What reads how probable each class is."""
    precision: Precision = "auto"
    """What it answers in; auto is what follows from the training's."""

    @classmethod
    def of(cls, spec: Evaluate) -> "Ask":
        """What these graders need to know."""
        reads = any(grader.reads == "likelihoods" for grader in spec.graders)
        chances = next((grader for grader in spec.graders if isinstance(grader, AveragePrecision)), None)
        return cls(
            rows=spec.rows, max_tokens=spec.max_tokens, likelihoods=reads, chances=chances, precision=spec.precision
        )


def ask(
    spec: Ask, prepared: Artifact, finetuned: Artifact | None = None, pruned: Artifact | None = None, *, out: Output, model: str,
    precision: Precision, adapter: dict[str, Any], shots: int = 0,
) -> None:  # fmt: skip
    """Write `answers.json`, one for each test row, `likelihoods.json`, and, if they are wanted, `chances.json`; of the base where nothing was tuned. After `shots` worked examples
    there are answers alone, since likelihoods and chances are those of the prompt as it is.

    Raises:
        DataError: there are no test rows.
    """
    test = load_examples(prepared.path, "test", spec.rows)
    if not test:
        raise DataError("compare: there are no test rows; set prepare.test or prepare.test_fraction")
    loaded = load(model, served(precision, spec.precision), today=rendered_on(prepared.path))
    if finetuned is not None:
        merge(loaded, adapter, finetuned, precision, pruned)
    before = worked(load_examples(prepared.path, "train"), shots)
    write_json(out / "answers.json", answer(loaded, test, Sampling(max_tokens=spec.max_tokens), before))
    rows = load_split(prepared.path, "test", spec.rows) if spec.likelihoods and not shots else []
    write_json(out / "likelihoods.json", [[each.loss, each.tokens] for each in likelihoods(loaded, rows)])
    if spec.chances is not None and not shots:
        write_json(out / "chances.json", chances(loaded, test, spec.chances.asked(test)))


STAGE = Stage("ask", 4, ask)
