"""Balance: rare classes are drawn more often (Kang et al., 2020, arXiv:1910.09217) or count more in the loss (Cui et al., 2019, arXiv:1901.05555)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tunesmith.base import Spec
from tunesmith.data.classes import rarest
from tunesmith.data.example import WEIGHT, Row
from tunesmith.data.split import shares


@dataclass(frozen=True)
class Draw:
    """How many rows of each class an epoch holds, and which.

    The rows of a class are gone through like a deck of cards, shuffled anew when it is used up, across epochs: no row comes again before
    every row of its class has come.
    """

    members: tuple[np.ndarray, ...]
    """Per class its rows' places, int64."""
    counts: tuple[int, ...]
    """Per class its rows in an epoch, at least one."""

    @property
    def size(self) -> int:
        """Rows of an epoch."""
        return sum(self.counts)

    def places(self, seed: int, epoch: int) -> np.ndarray:
        """int64 [size]: places of an epoch's rows, ascending."""
        pairs = enumerate(zip(self.members, self.counts, strict=True), 1)
        return np.sort(
            np.concatenate([self._dealt(places, count, seed, name, epoch) for name, (places, count) in pairs])
        )

    def _dealt(self, places: np.ndarray, count: int, seed: int, name: int, epoch: int) -> np.ndarray:
        first, last = epoch * count, (epoch + 1) * count
        decks = range(first // len(places), -(-last // len(places)))
        dealt = np.concatenate([np.random.default_rng([seed, deck, name]).permutation(places) for deck in decks])
        start = first - decks.start * len(places)
        return dealt[start : start + count]


class Balance(Spec):
    """What is done about rare classes. `prepare.classes` says what a row's class is; as it stands, nothing is done."""

    power: float = Field(1.0, ge=0, le=1)
    """Power of a class's number of rows that its share of an epoch follows: 1 draws rows as they are, 0.5 by the square root, 0 all classes alike
    (q of Kang et al., 2020, arXiv:1910.09217)."""
    size: Literal["same", "over", "under"] = "same"
    """Rows of an epoch where `power` is below 1: as many as there are; `over`: the largest class once and the others repeated; `under`: the smallest
    class once and as many of the others as go with it, different ones every epoch."""
    weight: float = Field(0.0, ge=0, le=1)
    """How much more a row of a rare class counts in the loss: by the inverse of its class's effective number of rows, (1 - b^n) / (1 - b), where this is
    b (beta of Cui et al., 2019, arXiv:1901.05555, which takes 0.9 to 0.9999). 0 counts rows alike, 1 by N / (K n). The mean over rows is 1."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.power < 1 and self.weight:
            raise ValueError("power and weight correct the same skew twice; keep one")
        if self.size != "same" and self.power == 1:
            raise ValueError(
                f"size {self.size} has rows drawn in other shares, and power 1 draws them as they are; lower power, for example to 0"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether anything is done."""
        return self.power < 1 or self.weight > 0

    def draw(self, rows: Sequence[Row]) -> Draw | None:
        """Which of the rows an epoch holds, at least one of each class; None for each once."""
        if self.power == 1:
            return None
        found = _classes(rows)
        parts = {name: len(each.places) * each.count ** (self.power - 1) for name, each in found.items()}
        whole = {"over": max, "under": min}.get(self.size)  # the class that is taken once
        times = len(rows) / sum(parts.values())
        if whole:
            times = whole(each.count for each in found.values()) ** (1 - self.power)
        counts = shares(parts, round(times * sum(parts.values())))
        return Draw(tuple(each.places for each in found.values()), tuple(max(1, counts[name]) for name in found))

    def weights(self, rows: Sequence[Row]) -> dict[str, float]:
        """Per class what each of its rows counts in the loss."""
        found = _classes(rows)
        inverse = {name: 1 / self._effective(each.count) for name, each in found.items()}
        mean = sum(inverse[name] * len(each.places) for name, each in found.items()) / len(rows)
        return {name: value / mean for name, value in inverse.items()}

    def _effective(self, count: int) -> float:
        """The effective number of so many rows: 1 for b = 0, all of them for b = 1."""
        return float(count) if self.weight == 1 else (1 - self.weight**count) / (1 - self.weight)

    def weighted(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that are learnt from with what they count; what a row says of that itself is multiplied."""
        if not self.weight:
            return list(rows)
        weights, weight_N = self.weights(rows), np.zeros(len(rows))
        for name, each in _classes(rows).items():
            weight_N[each.places] = weights[name]
        return [_counting(row, weight) for row, weight in zip(rows, weight_N.tolist(), strict=True)]

    def table(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Per class, the largest first, its `rows`, those of an `epoch`, and the `weight` of each."""
        found, draw, weights = _classes(rows), self.draw(rows), self.weights(rows)
        epoch = [len(each.places) for each in found.values()] if draw is None else draw.counts
        told = {
            name: {"rows": len(each.places), "epoch": count, "weight": round(weights[name], 4)}
            for (name, each), count in zip(found.items(), epoch, strict=True)
        }
        return dict(sorted(told.items(), key=lambda item: -item[1]["rows"]))


@dataclass(frozen=True)
class Class:
    """The rows of a class."""

    places: np.ndarray
    """int64, ascending."""
    count: int
    """Rows that have its value; more than `places` where some of them have a rarer one too."""


def _classes(rows: Sequence[Row]) -> dict[str, Class]:
    """Every class that is some row's, by name."""
    names, count_V, number_N = rarest([row.classes for row in rows])
    order_N = np.argsort(number_N, kind="stable")
    present, starts = np.unique(number_N[order_N], return_index=True)
    parts = zip(present.tolist(), np.split(order_N, starts[1:]), strict=True)
    held = {names[number]: Class(places, int(count_V[number])) for number, places in parts}
    return dict(sorted(held.items()))


def _counting(row: Row, weight: float) -> Row:
    return replace(row, columns={**row.columns, WEIGHT: row.columns.get(WEIGHT, 1.0) * weight})
