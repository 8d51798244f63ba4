"""AdamW with moments in eight bits (Dettmers et al., 2022, arXiv:2110.02861)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from .adamw import AdamW
from .kept import KeptAdamW, slots


class AdamW8bit(AdamW):
    """AdamW with a quarter of its memory: moments take a byte for each weight, with a scale for every 256. Worth it where all weights learn."""

    kind: Literal["adamw8bit"] = "adamw8bit"  # type: ignore[assignment]

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """One that moves a piece of a weight at a time, its moments in float32 meanwhile."""
        groups = self.groups(parameters)
        return KeptAdamW(groups, eight=True, offload=self.offload, betas=self.betas, eps=self.epsilon)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Two codes for each weight, two scales for each block."""
        kept = [kind for parameter in parameters.values() for kind in slots(parameter, True).values()]
        return 0 if self.offload else sum(kind.nbytes for kind in kept)
