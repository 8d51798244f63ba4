"""Supervised fine-tuning: next-token cross-entropy on the tokens of the answer."""

from typing import ClassVar, Literal

from tunesmith.data.batch import Batch
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded

from .base import Loss, Objective


class SFT(Objective):
    """Raise the likelihood of the demonstrated answers. The first thing to try whenever you have examples of good answers."""

    kind: Literal["sft"] = "sft"
    answers: ClassVar[int | None] = 1

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """Negative log-likelihood in nats, summed over supervised tokens."""
        return Loss(-token_logps(loaded, batch).sum())
