"""Moves along random directions: noted by an optimizer that makes them, and kept beside what was learnt."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SEEDS, MOVES = "seeds", "moves"
"""State of the first weight: int64 [moves], and float64 [moves, ...] with how far each went."""


class Moving(torch.optim.Optimizer):
    """A torch optimizer whose moves are told by seeds and a few numbers each, the state of the first weight that learns."""

    FILE: ClassVar[str]
    """What they are kept in beside an adapter."""

    @abstractmethod
    def about(self) -> dict[str, str]:
        """What it takes besides to make them again, under one key: safetensors writes several in any order, and files would differ."""

    @property
    def moves(self) -> tuple[Tensor, Tensor]:
        """Seeds and moves so far."""
        state = self.state[self._first]
        none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        return (state[SEEDS], state[MOVES]) if state else none

    def note(self, seed: int, move: Any) -> None:
        """Add one."""
        state = self.state[self._first]
        for name, one in ((SEEDS, torch.tensor([seed])), (MOVES, torch.tensor([move], dtype=torch.float64))):
            state[name] = torch.cat([state[name], one]) if name in state else one

    @property
    def _first(self) -> nn.Parameter:
        found: nn.Parameter = self.param_groups[0]["params"][0]
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved; torch would round the seeds to the weights' type."""
        super().load_state_dict(state_dict)
        for slots in state_dict["state"].values():
            self.state[self._first] = {name: value.clone() for name, value in slots.items()}

    def save(self, folder: Path) -> None:
        """Write all moves beside an adapter."""
        save_file(dict(zip((SEEDS, MOVES), self.moves, strict=True)), folder / self.FILE, self.about())


def places(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, int]:
    """Where each parameter begins in a direction through all of them."""
    found, end = {}, 0
    for parameter in parameters:
        found[parameter] = end
        end += parameter.numel()
    return found
