"""Validation: what a run is watched by, on rows it does not learn from, and how that has gone so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, field_validator

from tunesmith.base import ModelError, Spec
from tunesmith.data.example import Example, Row
from tunesmith.grading import Grader
from tunesmith.methods.objectives import Objective
from tunesmith.models.load import Loaded
from tunesmith.training.rollouts import Rollouts

from .judge import earned, grade, mean_loss


class Validation(Spec):
    """Watching the run on rows it does not learn from, and stopping when it no longer improves."""

    metric: Grader | Literal["auto", "loss"] = "auto"
    """What is watched: the objective's loss on the validation rows, or a grader of greedy answers to them. `auto` takes the loss, or,
    where the model learns from its own answers, what greedy ones earn."""
    every: int | float = Field(1.0, gt=0)
    """How often: a count of steps, or, written with a point, epochs."""
    rows: int = Field(64, ge=1)
    """Most rows to judge by."""
    patience: int = Field(0, ge=0)
    """Stop after this many judgements without improvement; 0 never stops early."""
    max_tokens: int = Field(128, ge=1)
    """Length of the answers a grader reads; what rewards are paid for is as long as `rollouts.max_tokens`."""

    @field_validator("metric")
    @classmethod
    def _grades_answers(cls, metric: Grader | str) -> Grader | str:
        if isinstance(metric, Grader) and metric.reads != "answers":
            raise ValueError(
                f"{metric.called} reads {metric.reads}, and validation makes answers; take loss, or another grader"
            )
        return metric


@dataclass(frozen=True)
class Judgement:
    """One look at the validation rows."""

    metric: str
    value: float
    lower_is_better: bool


@dataclass(frozen=True)
class Judge:
    """The validation rows and how they are judged."""

    spec: Validation
    objective: Objective
    rollouts: Rollouts | None
    examples: Sequence[Example]
    rows: Sequence[Row]
    size: int
    """Rows that are computed together."""

    @property
    def metric(self) -> str:
        """What is judged by."""
        metric = self.spec.metric
        return metric.called if isinstance(metric, Grader) else "loss" if self.rollouts is None else "reward"

    @property
    def lower_is_better(self) -> bool:
        """Of its values."""
        metric = self.spec.metric
        return metric.better == "lower" if isinstance(metric, Grader) else self.rollouts is None

    def look(self, loaded: Loaded) -> Judgement:
        """The model as it is now; it is left in evaluation mode.

        Raises:
            ModelError: its value is not finite, and nothing could be chosen by it.
        """
        value = self._value(loaded)
        if not math.isfinite(value):
            raise ModelError(
                f"the {self.metric} on the validation rows is not finite; look at them, or watch something else by finetune.validation.metric"
            )
        return Judgement(self.metric, value, self.lower_is_better)

    def _value(self, loaded: Loaded) -> float:
        metric, longest = self.spec.metric, self.spec.max_tokens
        if isinstance(metric, Grader):
            return grade(loaded, self.examples, metric, longest)
        if self.rollouts is not None:
            return earned(loaded, self.examples, self.rollouts)
        return mean_loss(loaded, self.rows, self.objective, self.size)


@dataclass
class Watch:
    """How validation has gone so far; travels with the checkpoints."""

    best: float | None = None
    best_step: int = 0
    waited: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    scored: list[tuple[int, float]] = field(default_factory=list)
    """Looks that were asked for on the way, as a search does; they choose no checkpoint."""
    skipped: int = 0
    """Steps that were left out because something in them was not finite."""
    tokens: int = 0
    """Learnt from so far; what rows of a step share counts once."""

    def take(self, step: int, judgement: Judgement) -> bool:
        """Note a judgement; whether it is the best so far."""
        value = judgement.value
        self.history.append((step, value))
        better = self.best is None or (value < self.best if judgement.lower_is_better else value > self.best)
        if better:
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1
        return better
