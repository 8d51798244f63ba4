"""Where batches come from: a dataset in an order that is a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row

from .balance import Draw


@dataclass(frozen=True)
class Dataset:
    """Rows in shuffled epochs; nothing to save: step n holds the same rows however the run got there."""

    rows: Sequence[Row]
    batch: int
    """Rows of an optimizer step."""
    micro_batch: int
    """Rows of one forward and backward pass."""
    epochs: float
    seed: int
    share: bool = True
    """Whether what rows share from their start is computed once."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What is to be reported of the rows of the last step."""
    draw: Draw | None = None
    """Which rows an epoch holds; None takes each once."""

    @property
    def repeats(self) -> int:
        """Optimizer steps on the same rows before the next ones are taken."""
        return 1

    @property
    def size(self) -> int:
        """Rows of an epoch."""
        return len(self.rows) if self.draw is None else self.draw.size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last may be short."""
        return -(-self.size // self.batch) * self.repeats

    @property
    def steps(self) -> int:
        """Steps of the whole run, at least one."""
        return max(1, round(self.steps_per_epoch // self.repeats * self.epochs)) * self.repeats

    def order(self, epoch: int) -> np.ndarray:
        """int64 [size]: places of the rows of an epoch, in its order."""
        places = np.arange(len(self.rows)) if self.draw is None else self.draw.places(self.seed, epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(places)

    def settled(self, number: int) -> bool:
        """Whether a run that has done so many steps can go on from its weights alone."""
        return number % self.repeats == 0

    def chosen(self, number: int) -> list[int]:
        """Places of a step's rows."""
        epoch, index = divmod(number // self.repeats, self.steps_per_epoch // self.repeats)
        found: list[int] = self.order(epoch)[index * self.batch : (index + 1) * self.batch].tolist()
        return found

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of a step, numbered from 0."""
        return self.cut([self.rows[place] for place in self.chosen(number)])

    def cut(self, chosen: Sequence[Row]) -> list[Batch]:
        """Rows of a step as micro-batches; those that begin alike go together."""
        rows = sorted(chosen, key=_beginning if self.share else len)
        starts = range(0, len(rows), self.micro_batch)
        return [Batch.of(rows[start : start + self.micro_batch], self.share) for start in starts]

    def from_step(self, first: int) -> Iterator[list[Batch]]:
        """The steps from `first` to the end."""
        for number in range(first, self.steps):
            yield self.step(number)


def _beginning(row: Row) -> tuple[bytes, int]:
    """Sorts equal beginnings next to each other."""
    return row.sequences[0].tokens.tobytes(), len(row)
