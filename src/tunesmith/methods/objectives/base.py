"""What an objective is: its hyper-parameters and one function."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tunesmith.base import DataError, Family
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.models.load import Loaded


class Loss(NamedTuple):
    """Sums, not means, so that micro-batches and ranks add up exactly."""

    total: Tensor
    """Scalar, differentiable; divided by the step's count outside."""
    stats: Mapping[str, Tensor] = {}
    """Further sums to report, divided by the same count."""


class Teaching(NamedTuple):
    """What an objective asks of a teacher, of each supervised token: the columns `TAUGHT` and `TAUGHT_LOGP`."""

    model: str | None
    """None is the model that training starts from."""
    top: int
    """How many of the likeliest tokens."""
    temperature: float
    """What the teacher's logits are divided by."""


class Objective(Family):
    """What is minimised. A member is one file: fields, `__call__`, and perhaps `count` and what it asks of rows."""

    answers: ClassVar[int | None] = None
    """How many answers each row must have; None takes any number."""
    demonstrates: ClassVar[bool] = False
    """Whether it learns every answer as a good one, so that none may be marked as unwanted."""
    rollouts: ClassVar[bool] = False
    """Whether it learns from answers that the model itself samples, with the columns `reward(answer)`."""
    whole: ClassVar[bool] = False
    """Whether rows of a step are compared with each other, so that they must pass together."""
    weighs: ClassVar[bool] = False
    """Whether it reads the column WEIGHT: how much a row counts."""
    group: ClassVar[int] = 1
    """Fewest answers to a prompt that it learns from."""
    head: ClassVar[bool] = False
    """Whether it reads numbers for tokens from a head that learns with the adapter, see `tunesmith.models.heads`."""
    scores: ClassVar[bool] = False
    """Whether it leaves a model that scores answers and writes none."""

    @property
    def references(self) -> bool:
        """Whether it reads log-probabilities of the model that training starts from: the columns `reference(answer)`, or of tokens, `START`."""
        return False

    @property
    def others(self) -> tuple[str, ...]:
        """Further models whose log-probabilities of whole answers it reads: the columns `reference(answer, number)`, numbered from 1."""
        return ()

    @property
    def teaching(self) -> Teaching | None:
        """Whose likeliest tokens it learns from."""
        return None

    @abstractmethod
    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """The loss of a batch; log-probabilities come from `tunesmith.models.forward.token_logps`."""

    def arranged(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows as it learns from them, where that takes more than what was given."""
        return rows

    def credited(self, rows: Sequence[Row]) -> Sequence[Row]:
        """A step's sampled answers, with what they earned and what was measured of them, as it learns from them in all updates."""
        return rows

    def count(self, batch: Batch) -> int:
        """How many things `total` sums over: supervised tokens, unless a member says otherwise."""
        return batch.supervised

    def check(self, rows: Iterable[Row]) -> None:
        """Refuse rows that it cannot learn from.

        Raises:
            DataError: naming the first one.
        """
        for row in rows:
            if self.answers is not None and len(row.sequences) != self.answers:
                raise DataError(
                    f"{row.origin}: {len(row.sequences)} answers, objective {self.kind} learns from {self.answers} (1: a demonstration, 2: chosen and "
                    "rejected); choose another finetune.objective.kind, or give it rows of that shape"
                )
            if self.demonstrates and not row.columns.get("label", 1.0):
                raise DataError(
                    f"{row.origin}: its answer is an unwanted one (label false), which objective {self.kind} would learn; leave such rows out, or set "
                    "finetune.objective.kind=kto"
                )


def reference(answer: int, model: int = 0) -> str:
    """Name of the column with a model's log-probability of a row's answer, counted from 0; model 0 is the one that training starts from."""
    return f"reference_{answer}" + (f"_of_{model}" if model else "")


def reward(answer: int) -> str:
    """Name of the column with what a row's answer earned, counted from 0."""
    return f"reward_{answer}"


def earned(batch: Batch) -> Tensor:
    """Float32 [R, G]: what each of a row's G answers earned."""
    answers = len(batch.row_S) // len(batch.origins)
    return torch.stack([batch.columns[reward(answer)] for answer in range(answers)], 1)


OLD = "old_logp"
"""Name of the token column with the log-probability under the policy that sampled the answers."""
START = "start_logp"
"""Name of the token column with the log-probability under the model that training starts from."""
VALUE = "old_value"
"""Name of the token column with what the head of that policy expected to be still to be earned, before the token."""
ADVANTAGE = "advantage"
"""Name of the token column with how much better than that the token was."""
RETURN = "return"
"""Name of the token column with what was still to be earned in fact."""
TAUGHT = "taught_tokens"
"""Name of the token column with the K tokens that a teacher finds likeliest: [supervised, K], the likeliest first."""
TAUGHT_LOGP = "taught_logp"
"""Name of the token column with the teacher's log-probabilities of these."""
TOKEN_COLUMNS = (OLD, START, VALUE, ADVANTAGE, RETURN)
"""Every token column of one number that there may be."""
