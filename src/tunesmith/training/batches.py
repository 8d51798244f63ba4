"""Where batches come from: a dataset in an order that is a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row


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

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last may be short."""
        return -(-len(self.rows) // self.batch)

    @property
    def steps(self) -> int:
        """Steps of the whole run, at least one."""
        return max(1, round(self.steps_per_epoch * self.epochs))

    def order(self, epoch: int) -> np.ndarray:
        """int64 [rows]: the order of an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of a step, numbered from 0; rows that begin alike go together."""
        epoch, index = divmod(number, self.steps_per_epoch)
        chosen = self.order(epoch)[index * self.batch : (index + 1) * self.batch]
        rows = sorted((self.rows[row] for row in chosen), key=_beginning if self.share else len)
        starts = range(0, len(rows), self.micro_batch)
        return [Batch.of(rows[start : start + self.micro_batch], self.share) for start in starts]

    def from_step(self, first: int) -> Iterator[list[Batch]]:
        """The steps from `first` to the end."""
        for number in range(first, self.steps):
            yield self.step(number)


def _beginning(row: Row) -> tuple[bytes, int]:
    """Sorts equal beginnings next to each other."""
    return row.sequences[0].tokens.tobytes(), len(row)
