"""How the learning rate changes over a run."""

import math
from typing import Literal

from pydantic import Field

from tunesmith.base import Spec


class Schedule(Spec):
    """A warmup from zero, then a shape down to a floor."""

    shape: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after warmup."""
    warmup: int | float = Field(0.05, ge=0)
    """Steps of warmup; below 1 a share of all steps."""
    floor: float = Field(0.0, ge=0, le=1)
    """Where it ends, as a share of the peak."""

    @property
    def endless(self) -> bool:
        """Whether a step's rate is the same however many there are in all."""
        return self.shape == "constant" and not 0 < self.warmup < 1

    def warmed(self, steps: int) -> float:
        """Steps of warmup, of so many in all."""
        return self.warmup if self.warmup >= 1 else self.warmup * steps

    def factor(self, step: int, steps: int) -> float:
        """What the peak rate is multiplied by at `step` (from 0) of `steps`."""
        warmup = self.warmed(steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.shape == "constant":
            return 1.0
        progress = (step - warmup) / max(1.0, steps - warmup)
        fall = 1 - progress if self.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.floor + (1 - self.floor) * fall
