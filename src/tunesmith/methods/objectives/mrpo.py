"""Multi-reference preference optimisation (Le et al., 2024, arXiv:2405.16388): DPO held to several models at once, by a mixture of what they say.

In the authors' code the adaptive weight of one reference lands on the other; here it is the paper's: who tells the answers further apart counts more.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.data.batch import Batch

from .dpo import DPO
from .preference import references

SMALLEST = 1e-6
"""Added to each gap, so that models which all find two answers equally likely count alike."""


class MRPO(DPO):
    """DPO held to other models beside the one that training starts from. To be tried where a larger or better tuned model is at hand.

    What the others say is computed once, before the first step; a model with another tokenizer reads the text by its own template. Without
    others this is `dpo`. A replication (Wu and Echarghaoui, 2025, arXiv:2512.10040) found single references better: compare with `dpo`.
    """

    kind: Literal["mrpo"] = "mrpo"  # type: ignore[assignment]
    models: tuple[str, ...] = ()
    """The other references, named as `model` is: an embedded model, a folder, the folder of a finished run, a GGUF file or a hub id."""
    weights: Literal["adaptive", "equal"] = "adaptive"
    """How much each reference counts for a pair: by how far apart it finds the two answers, or all alike."""
    clip: float = Field(0.1, ge=0)
    """How far another reference's log-probability may lie from the start's, as a share of it (0.1 in the paper); this is shared out between the two
    answers of a pair in proportion to their log-probabilities. 0 does not clip."""

    @property
    def others(self) -> tuple[str, ...]:
        """The references beside the start."""
        return self.models

    def start(self, batch: Batch) -> Tensor:
        """Log of the references' weighted harmonic mean, 1 / sum_k (weight_k / p_k); that of one is the reference itself."""
        logp_KR2 = torch.stack([references(batch, model) for model in range(1 + len(self.models))])
        weight_KR1 = self.shares(logp_KR2)[:, :, None]
        return -torch.logsumexp(weight_KR1.log() - self.clipped(logp_KR2), 0)

    def shares(self, logp_KR2: Tensor) -> Tensor:
        """Float32 [K, R]: how much each reference counts for each pair; sums to 1 over references."""
        gap_KR = (logp_KR2[:, :, 0] - logp_KR2[:, :, 1]).abs() + SMALLEST
        if self.weights == "equal":
            gap_KR = torch.ones_like(gap_KR)
        return gap_KR / gap_KR.sum(0)

    def clipped(self, logp_KR2: Tensor) -> Tensor:
        """The references with the others drawn near the start: the paper's trust region, wider for the less likely of two answers."""
        if not self.clip:
            return logp_KR2
        start_R2, mean_R2 = logp_KR2[0], logp_KR2.mean(0).abs()
        reach_R2 = self.clip * mean_R2 / mean_R2.sum(1, keepdim=True) * start_R2.abs()
        return torch.cat([start_R2[None], torch.clamp(logp_KR2[1:], start_R2 - reach_R2, start_R2 + reach_R2)])
