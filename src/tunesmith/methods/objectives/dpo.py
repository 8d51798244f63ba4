"""Direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290): chosen answers above rejected ones, by margin against the start."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from tunesmith.data.batch import Batch
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded

from .base import Loss, Objective, reference


class DPO(Objective):
    """Prefer one answer to another. For tasks where you can say which of two answers is better, but not write the best one down."""

    kind: Literal["dpo"] = "dpo"
    answers: ClassVar[int | None] = 2
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the model that training starts from; 0.1 to 0.5 in the paper's experiments."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences that are taken to be the wrong way round (Mitchell, 2023, "A note on DPO with noisy preferences")."""

    @property
    def references(self) -> bool:
        """Its gains are measured from where training starts."""
        return True

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """-log sigmoid(beta (chosen's gain - rejected's gain)), eq. 7, summed over pairs; a gain is log p / p_reference of an answer."""
        pairs_R2 = batch.per_sequence(token_logps(loaded, batch)).view(-1, 2)
        start_R2 = torch.stack([batch.columns[reference(answer)] for answer in range(2)], 1).to(pairs_R2.device)
        gain_R2 = pairs_R2 - start_R2
        margin_R = self.beta * (gain_R2[:, 0] - gain_R2[:, 1])
        right, wrong = -logsigmoid(margin_R), -logsigmoid(-margin_R)
        total = ((1 - self.label_smoothing) * right + self.label_smoothing * wrong).sum()
        stats = {
            "accuracy": (margin_R > 0).float().sum(),
            "margin": margin_R.sum(),
            "chosen_gain": gain_R2[:, 0].sum(),
            "rejected_gain": gain_R2[:, 1].sum(),
        }
        return Loss(total, {name: value.detach() for name, value in stats.items()})

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.origins)
