"""Reward models: scores of answers, learnt from preferences (Bradley and Terry, 1952; Ouyang et al., 2022, arXiv:2203.02155) or from marks."""

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.base import DataError
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.models.heads import scores
from tunesmith.models.load import Loaded

from .base import Loss, Objective

MARGIN = "margin"
"""Name of the column that tells by how much a chosen answer is better, where rows have it."""


class Reward(Objective):
    """Learn to score answers, to pay rollouts or to choose among answers. The score is a linear head's, at an answer's last token; the head begins at zero."""

    kind: Literal["reward"] = "reward"
    head: ClassVar[bool] = True
    scores: ClassVar[bool] = True
    loss: Literal["preference", "regression"] = "preference"
    """Whether rows hold a chosen and a rejected answer, or one answer and the score that it should have."""
    target: str = "score"
    """Column with that score, for regression; `prepare.columns` has to name it."""
    centering: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which else may drift together (Eisenstein et al., 2023, arXiv:2312.09244); 0.01 is usual."""

    @model_validator(mode="after")
    def _pairs_are_centred(self) -> Self:
        if self.centering and self.loss == "regression":
            raise ValueError("centering is for preferences: regression says itself where scores lie; leave it out")
        return self

    def check(self, rows: Iterable[Row]) -> None:
        """Every row has the answers that the loss compares, and for regression its score.

        Raises:
            DataError: naming the first one that does not.
        """
        wanted = 2 if self.loss == "preference" else 1
        for row in rows:
            if len(row.sequences) != wanted:
                other = "regression" if wanted == 2 else "preference"
                raise DataError(
                    f"{row.origin}: {len(row.sequences)} answers, objective reward with loss {self.loss} learns from {wanted}; "
                    f"give it such rows, or set finetune.objective.loss={other}"
                )
            if wanted == 1 and self.target not in row.columns:
                raise DataError(
                    f"{row.origin}: does not say how good its answer is; name the field that does: prepare.columns=[{self.target}]"
                )

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """Costs, summed over rows."""
        score_S = scores(loaded, batch)
        if self.loss == "regression":
            apart_R = score_S - batch.columns[self.target].to(score_S.device)
            return Loss(apart_R.square().sum(), {"error": apart_R.detach().abs().sum()})
        return self._preferred(score_S.view(-1, 2), batch)

    def _preferred(self, score_R2: Tensor, batch: Batch) -> Loss:
        """-log sigmoid of the difference, beyond the row's margin if it has one (Touvron et al., 2023, arXiv:2307.09288, eq. 2)."""
        apart_R = score_R2[:, 0] - score_R2[:, 1]
        margin_R = batch.columns[MARGIN].to(apart_R.device) if MARGIN in batch.columns else torch.zeros_like(apart_R)
        cost_R = -logsigmoid(apart_R - margin_R)
        if self.centering:
            cost_R = cost_R + self.centering * score_R2.sum(1).square()
        stats = {
            "accuracy": (apart_R > 0).float().sum(),
            "margin": apart_R.sum(),
            "chosen_score": score_R2[:, 0].sum(),
            "rejected_score": score_R2[:, 1].sum(),
        }
        return Loss(cost_R.sum(), {name: value.detach() for name, value in stats.items()})

    def count(self, batch: Batch) -> int:
        """Rows."""
        return len(batch.origins)
