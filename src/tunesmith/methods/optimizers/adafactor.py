"""Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235): Adam's running square kept as one number for each row and each column."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer


class Adafactor(Optimizer):
    """Nearly Adam, and nearly without memory: for all weights of a model that AdamW's moments would not fit beside."""

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: float = Field(1e-2, gt=0)
    """Largest step relative to the size of a matrix (rho in the paper), reached after warmup; 1e-2 in the paper, less for full fine-tuning."""
    decay: float = Field(-0.8, le=0)
    """Power of the step number at which the running square forgets; -0.8 in the paper."""
    threshold: float = Field(1.0, ge=1)
    """Root mean square beyond which an update is scaled down (d in the paper, which has 1)."""

    smallest: float = Field(1e-3, gt=0)
    """Size that a matrix counts as at least (epsilon_2 in the paper); 1e-3 in the paper. One that begins at zero, such as a low-rank correction's B, moves by
    steps of this, so take some 0.05 for those."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's."""
        return torch.optim.Adafactor(
            self.groups(parameters), beta2_decay=self.decay, eps=(None, self.smallest), d=self.threshold
        )

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """A float32 number for each row and each column of a matrix, and for each element of what is none."""
        return 4 * sum(
            one.numel() if one.ndim < 2 else one.numel() // one.shape[-1] + one.numel() // one.shape[-2]
            for one in parameters.values()
        )
