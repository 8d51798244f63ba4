"""What a proposer is: told how instructions did so far, it thinks of others."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from tunesmith.base import Family
from tunesmith.data.example import Example


@dataclass(frozen=True)
class Trial:
    """An instruction and what it scored on the development rows."""

    instruction: str
    score: float


@dataclass(frozen=True)
class Situation:
    """What a proposer is told. No development row and no test row is part of it."""

    current: Trial
    """The best so far; its instruction may be empty."""
    past: tuple[Trial, ...]
    """Others that were tried, those most like the current one last."""
    examples: tuple[Example, ...]
    """Rows that may be shown: those that examples are taken from."""
    limit: int
    """Words by which a proposal may differ from the current instruction."""
    unit: str
    """What scores are in."""


class Proposer(Family):
    """Who thinks of other instructions. A member is one file: fields, and `propose`."""

    def check(self) -> None:
        """Refuse what cannot work, before a model is loaded.

        Raises:
            ConfigError: says what is missing.
        """

    @abstractmethod
    def propose(self, situation: Situation, count: int, generator: np.random.Generator) -> list[str]:
        """Up to `count` instructions; the caller drops those that change too much, or were tried.

        Raises:
            MachineError: nobody answered.
        """
