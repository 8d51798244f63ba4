"""Numbers that go wrong in the middle of a training: nan or infinity in the loss, a gradient, a weight, what the optimizer remembers, or a row's weight."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.example import WEIGHT
from tunesmith.methods.adapters import trainable
from tunesmith.stages import tuning
from tunesmith.training import loop

PLACES = ("loss", "gradient", "weight", "state", "data")


@dataclass
class Fault:
    """What goes wrong, and at which step; `fired` tells whether it did."""

    place: str
    value: float
    at: int
    fired: int = 0
    now: bool = field(default=False, repr=False)

    def train(
        self,
        loaded: Any,
        objective: Any,
        steps: Any,
        optimizer: Any,
        factor: Any,
        *,
        inner: Any = loop.train,
        **rest: Any,
    ) -> Iterator[Any]:
        """The loop as it is, or with another fault, with this in it."""
        if self.place == "gradient":
            next(iter(trainable(loaded.model).values())).register_hook(self._spoil)
        wrapped = Faulty(self, objective) if self.place == "loss" else objective
        poisoned = self._steps(steps, rest.get("first", 0), loaded, optimizer)
        return inner(loaded, wrapped, poisoned, optimizer, factor, **rest)

    def _spoil(self, tensor: torch.Tensor) -> torch.Tensor:
        self.fired += self.now
        return tensor * self.value if self.now else tensor

    def _steps(self, steps: Any, first: int, loaded: Any, optimizer: Any) -> Iterator[Any]:
        for number, batches in enumerate(steps, first):
            self.now = number == self.at
            if self.now and self.place in ("weight", "state"):
                weight = next(iter(trainable(loaded.model).values()))
                tensor = weight if self.place == "weight" else self._remembered(optimizer.state[weight])
                with torch.no_grad():
                    tensor.view(-1)[0] = self.value
                self.fired += 1
            if self.now and self.place == "data":
                worth = [torch.tensor([self.value, *[1.0] * (len(batch.origins) - 1)]) for batch in batches]
                batches = [replace(one, columns={WEIGHT: each}) for one, each in zip(batches, worth, strict=True)]
                self.fired += 1
            yield batches

    @staticmethod
    def _remembered(slots: dict[str, torch.Tensor]) -> torch.Tensor:
        return next(one for name, one in slots.items() if one.is_floating_point() and name != "step")


@dataclass
class Faulty:
    """An objective whose loss a fault spoils."""

    fault: Fault
    objective: Any

    def __call__(self, loaded: Any, batch: Any) -> Any:
        total, stats = self.objective(loaded, batch)
        return self.fault._spoil(total), stats

    def count(self, batch: Any) -> float:
        return self.objective.count(batch)

    @property
    def rollouts(self) -> bool:
        return self.objective.rollouts


def arm(place: str, value: str, at: int, fired: str) -> None:
    """Let it happen in whatever is trained in this process; `fired` is a file that is written when it does."""
    fault = Fault(place, float(value), at)

    def train(*given: Any, **named: Any) -> Iterator[Any]:
        try:
            yield from fault.train(*given, **named)
        finally:
            if fault.fired:
                Path(fired).write_text(str(fault.fired))

    tuning.train = train
