"""The probability of each class that an answer may hold, by the likelihoods of the answers that the classes make."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from tunesmith.data.batch import Batch, common_prefix
from tunesmith.data.choices import answering
from tunesmith.data.example import Example, Row
from tunesmith.data.example import Sequence as Tokens
from tunesmith.data.render import Renderer
from tunesmith.grading import Grader
from tunesmith.grading.average_precision import Asked, AveragePrecision
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded

TOKENS = 1024
"""Most tokens scored in one forward pass, unless one field has more; what answers share, the prompt first of all, is computed once and not counted."""


Told = dict[str, dict[str, float]]
"""Per field the probability of each class, of one row."""
Tell = Callable[[Loaded], list[Told]]


def asking(graders: Sequence[Grader], test: Sequence[Example]) -> Tell | None:
    """What tells a model's chances of the test rows, if a grader reads them.

    Raises:
        DataError: it cannot read a row.
    """
    grader = next((each for each in graders if isinstance(each, AveragePrecision)), None)
    return None if grader is None else partial(chances, examples=test, asked=grader.asked(test))


@torch.no_grad()
def chances(loaded: Loaded, examples: Sequence[Example], asked: Sequence[Asked]) -> list[Told]:
    """Per example and field, how probable each class is among all of the field: exp of its answer's log-likelihood, over their sum."""
    loaded.model.eval()
    found: list[Told] = [{} for _ in examples]
    for groups in _passes(_groups(loaded.renderer(), examples, asked)):
        batch = Batch.of([row for _, _, row in groups])
        likely_S = batch.per_sequence(token_logps(loaded, batch)).double().cpu()
        for place, (number, field, _) in enumerate(groups):
            share_K = likely_S[batch.row_S == place].softmax(0).tolist()
            found[number][field] = dict(zip(asked[number][field], share_K, strict=True))
    return found


Group = tuple[int, str, Row]
"""An example's number, a field of its answer, and the answers that the field's classes make."""


def _groups(renderer: Renderer, examples: Sequence[Example], asked: Sequence[Asked]) -> Iterator[Group]:
    for number, (example, fields) in enumerate(zip(examples, asked, strict=True)):
        for field, answers in fields.items():
            rows = [renderer.row(answering(example, text)) for text in answers.values()]
            yield number, field, Row(example.origin, _apart([row.sequences[0] for row in rows]))


def _apart(sequences: Sequence[Tokens]) -> tuple[Tokens, ...]:
    """The same answers, scored from the first token in which any two differ; what stands before is as likely for all."""
    shared = min(common_prefix(sequences[0].tokens, other.tokens) for other in sequences[1:])
    return tuple(Tokens(each.tokens, each.learn & (np.arange(len(each)) >= shared)) for each in sequences)


def _passes(groups: Iterator[Group]) -> Iterator[list[Group]]:
    """Groups that are computed together."""
    held: list[Group] = []
    count = 0
    for group in groups:
        if held and count + group[2].supervised > TOKENS:
            yield held
            held, count = [], 0
        held.append(group)
        count += group[2].supervised
    if held:
        yield held
