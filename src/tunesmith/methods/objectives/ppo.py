"""Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347) with a value for each token, as in Ouyang et al., 2022, arXiv:2203.02155."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.data.example import Sequence as Tokens
from tunesmith.models.heads import logps_and_values
from tunesmith.models.load import Loaded

from .base import ADVANTAGE, OLD, RETURN, START, VALUE, Loss, Objective, reward

SMALLEST = 1e-8
"""Added to the variance of a step's advantages before dividing by its root."""
Floats = NDArray[np.float64]


class PPO(Objective):
    """Learn from rewards by trial, with a value for each token that tells which part of an answer earned them. GRPO does without values and is the first to
    try; PPO compares no answers with each other, so that one to a prompt is enough. It was made for several `rollouts.updates` on the same answers.

    Values come from a head on the model that learns, beginning at zero, so that no second model is held; their loss moves the adapter too. An answer is over at
    its last token, cut off or not. Advantages are whitened over all answers of a step.
    """

    kind: Literal["ppo"] = "ppo"
    rollouts: ClassVar[bool] = True
    head: ClassVar[bool] = True
    beta: float = Field(0.05, ge=0)
    """Price of each nat by which a token is likelier than under the model that training starts from; paid where the token is (0.02 in Ouyang et al., 0.05 in TRL)."""
    discount: float = Field(1.0, gt=0, le=1)
    """What a reward one token later is worth (gamma); as much as one now in Ouyang et al."""
    trace: float = Field(0.95, ge=0, le=1)
    """From 0, believing values, to 1, believing what was earned (lambda of generalised advantage estimation, arXiv:1506.02438); 0.95 in PPO's paper."""
    clip: float = Field(0.2, gt=0, lt=1)
    """A token's probability ratio to the sampling policy that is further from 1 teaches nothing more; 0.2 in the paper."""
    value_clip: float = Field(0.2, gt=0)
    """A value that moved further than this from what it was when the answer was sampled teaches nothing more; 0.2, as the policy's, in the implementations of OpenAI and TRL."""
    value_weight: float = Field(0.1, ge=0)
    """How much the squared error of values counts beside the policy's loss; 0.1 in TRL, where the two share few weights."""

    @property
    def references(self) -> bool:
        """Where leaving the start has a price."""
        return self.beta > 0

    def credited(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Advantages and returns of every token, whitened over all of them: nothing of them changes while the answers are learnt from."""
        parts = [self._credit(row, answer) for row in rows for answer in range(len(row.sequences))]
        joined = np.concatenate([advantage for advantage, _ in parts])
        spread = np.sqrt(joined.var(ddof=min(1, len(joined) - 1)) + SMALLEST)
        white = iter([((advantage - joined.mean()) / spread, returns) for advantage, returns in parts])
        return [replace(row, sequences=tuple(_with(one, *next(white)) for one in row.sequences)) for row in rows]

    def _credit(self, row: Row, answer: int) -> tuple[Floats, Floats]:
        """Advantages and returns of an answer's tokens: each pays for its divergence, the last one gets what the answer earned."""
        columns = {name: np.asarray(value, dtype=np.float64) for name, value in row.sequences[answer].columns.items()}
        paid = -self.beta * (columns[OLD] - columns[START]) if self.beta else np.zeros_like(columns[OLD])
        paid[-1] += row.columns[reward(answer)]
        advantage = advantages(paid, columns[VALUE], self.discount, self.trace)
        return advantage, advantage + columns[VALUE]

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """-min(ratio A, clip(ratio) A) + weight max((v - R)^2, (clip(v) - R)^2) / 2, summed over tokens."""
        logp_M, value_M = logps_and_values(loaded, batch)
        old_M, was_M, advantage_M, return_M = (
            batch.token_columns[name].to(logp_M.device) for name in (OLD, VALUE, ADVANTAGE, RETURN)
        )
        ratio_M = torch.exp(logp_M - old_M)
        gain_M, held_M = ratio_M * advantage_M, ratio_M.clamp(1 - self.clip, 1 + self.clip) * advantage_M
        near_M = torch.clamp(value_M, was_M - self.value_clip, was_M + self.value_clip)
        error_M, near_error_M = (value_M - return_M).square(), (near_M - return_M).square()
        loss_M = -torch.minimum(gain_M, held_M) + self.value_weight * torch.maximum(error_M, near_error_M) / 2
        stats = {
            "clipped": (held_M < gain_M).float().sum(),
            "value_clipped": (near_error_M > error_M).float().sum(),
            "value_error": error_M.sum(),
        }
        if self.beta:
            stats["divergence"] = (old_M - batch.token_columns[START].to(old_M.device)).sum()
        return Loss(loss_M.sum(), {name: value.detach() for name, value in stats.items()})


def advantages(paid: Floats, value: Floats, discount: float, trace: float) -> Floats:
    """Generalised advantage estimates, float64 [T]: sum over later tokens of (discount trace)^k (paid + discount value' - value).

    Args:
        paid: what each token earns.
        value: what was expected before it; after the last there is nothing more to earn.
    """
    surprise = paid + discount * np.append(value[1:], 0.0) - value
    found, later = np.empty_like(surprise), 0.0
    for place in range(len(surprise) - 1, -1, -1):
        found[place] = later = surprise[place] + discount * trace * later
    return found


def _with(sequence: Tokens, advantage: Floats, returns: Floats) -> Tokens:
    made = {ADVANTAGE: advantage.astype(np.float32), RETURN: returns.astype(np.float32)}
    return replace(sequence, columns={**sequence.columns, **made})
