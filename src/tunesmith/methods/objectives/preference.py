"""What objectives over pairs share: a score of each answer, and what a pair costs by the margin between its two."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tunesmith.base import DataError
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded

from .base import Loss, Objective, reference


class Answers(NamedTuple):
    """The answers of R rows, the chosen one first."""

    logp_R2: Tensor
    """Log-probability of each whole answer, in nats; differentiable."""
    tokens_R2: Tensor
    """How many tokens each has."""
    start_R2: Tensor
    """What it is held to: the log-probability that the model that training starts from gave it; zero where the objective asks for none."""

    @property
    def gains(self) -> Tensor:
        """[R, 2]: log p / p_start of each answer."""
        return self.logp_R2 - self.start_R2

    @property
    def means(self) -> Tensor:
        """[R, 2]: log-probability per token."""
        return self.logp_R2 / self.tokens_R2


class Preference(Objective):
    """Chosen answers above rejected ones. A member says how an answer scores, and what a margin between two scores costs."""

    answers: ClassVar[int | None] = 2

    @abstractmethod
    def score(self, answers: Answers) -> Tensor:
        """Float32 [R, 2]: how good each answer is to the model."""

    @abstractmethod
    def cost(self, answers: Answers, margin_R: Tensor) -> Tensor:
        """Float32 [R]: what each pair costs, given by how much the chosen answer's score is above the rejected one's."""

    def check(self, rows: Iterable[Row]) -> None:
        """As of every objective; and a prompt that counts as a part of both answers would drown what tells them apart.

        Raises:
            DataError: naming the first row.
        """
        held = list(rows)
        super().check(held)
        if learnt := next((row for row in held if row.sequences[0].learn[1:2].any()), None):
            raise DataError(
                f"{learnt.origin}: its prompt is learnt too, and {self.kind} compares answers; set prepare.supervise=answers"
            )

    def start(self, batch: Batch) -> Tensor:
        """Float32 [R, 2]: the log-probability of each answer that its gain is counted from."""
        return references(batch)

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """Costs, summed over pairs."""
        logp_R2 = batch.per_sequence(token_logps(loaded, batch)).view(-1, 2)
        start_R2 = self.start(batch).to(logp_R2.device) if self.references else torch.zeros_like(logp_R2)
        tokens_R2 = torch.bincount(batch.sequence_M, minlength=len(batch.row_S)).view(-1, 2).to(logp_R2.device)
        answers = Answers(logp_R2, tokens_R2, start_R2)
        score_R2 = self.score(answers)
        margin_R = score_R2[:, 0] - score_R2[:, 1]
        stats = {
            "accuracy": (margin_R > 0).float().sum(),
            "margin": margin_R.sum(),
            "chosen_score": score_R2[:, 0].sum(),
            "rejected_score": score_R2[:, 1].sum(),
        }
        return Loss(self.cost(answers, margin_R).sum(), {name: value.detach() for name, value in stats.items()})

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.origins)


def references(batch: Batch, model: int = 0) -> Tensor:
    """Float32 [R, 2]: what a model that stands still gave each answer; model 0 is the one that training starts from."""
    return torch.stack([batch.columns[reference(answer, model)] for answer in range(2)], 1)
