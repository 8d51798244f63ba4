"""Direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290): chosen answers above rejected ones, by margin against the start."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from .preference import Answers, Preference


class DPO(Preference):
    """Prefer one answer to another. For tasks where you can say which of two answers is better, but not write the best one down."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the model that training starts from; 0.1 to 0.5 in the paper's experiments."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences that are taken to be the wrong way round (Mitchell, 2023, "A note on DPO with noisy preferences"); none in DPO's own
    paper."""

    @property
    def references(self) -> bool:
        """Its gains are measured from where training starts."""
        return True

    def score(self, answers: Answers) -> Tensor:
        """beta log p / p_start of the whole answer."""
        return self.beta * answers.gains

    def cost(self, answers: Answers, margin_R: Tensor) -> Tensor:
        """-log sigmoid of the margin, eq. 7."""
        right, wrong = -logsigmoid(margin_R), -logsigmoid(-margin_R)
        return (1 - self.label_smoothing) * right + self.label_smoothing * wrong
