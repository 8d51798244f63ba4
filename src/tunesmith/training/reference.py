"""Log-probabilities of a model that stands still, computed once and kept beside the rows: no second model lives in the loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.methods.objectives.base import TAUGHT, TAUGHT_LOGP, Teaching, reference
from tunesmith.models.forward import token_logps, top_logps
from tunesmith.models.heads import logps_and_values
from tunesmith.models.load import Loaded


@torch.no_grad()
def with_references(loaded: Loaded, rows: Sequence[Row], size: int, model: int = 0) -> list[Row]:
    """The rows, `size` of them computed together, each with the log-probability of every answer under the model as it is, in nats: columns `reference(answer, model)`."""
    loaded.model.eval()
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: dict[int, Row] = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = Batch.of([rows[number] for number in chosen])
        sums = iter(batch.per_sequence(token_logps(loaded, batch)).tolist())
        for number in chosen:
            row = rows[number]
            columns = {reference(answer, model): next(sums) for answer in range(len(row.sequences))}
            found[number] = replace(row, columns={**row.columns, **columns})
    return [found[number] for number in range(len(rows))]


def with_token_logps(loaded: Loaded, rows: Sequence[Row], name: str, size: int) -> list[Row]:
    """The rows, `size` of them computed together, each supervised token with its log-probability under the model as it is, in nats: token column `name`."""
    return _told(loaded, rows, size, lambda batch: {name: token_logps(loaded, batch).float()})


def with_token_values(loaded: Loaded, rows: Sequence[Row], names: tuple[str, str], size: int) -> list[Row]:
    """The same with what the model's head says where each token is predicted: two token columns from one pass."""
    return _told(
        loaded, rows, size,
        lambda batch: {name: each.float() for name, each in zip(names, logps_and_values(loaded, batch), strict=True)},
    )  # fmt: skip


def with_teacher(loaded: Loaded, rows: Sequence[Row], teaching: Teaching, size: int, vocabulary: int) -> list[Row]:
    """The rows, `size` of them computed together, each supervised token with those that the model finds likeliest in its place: token columns `TAUGHT`, `TAUGHT_LOGP`.

    Args:
        vocabulary: how many tokens the one that is taught knows.
    """

    def told(batch: Batch) -> dict[str, Tensor]:
        token_MK, logp_MK = top_logps(loaded, batch, teaching.top, teaching.temperature, vocabulary)
        return {TAUGHT: token_MK.int(), TAUGHT_LOGP: logp_MK}

    return _told(loaded, rows, size, told)


@torch.no_grad()
def _told(loaded: Loaded, rows: Sequence[Row], size: int, tell: Callable[[Batch], Mapping[str, Tensor]]) -> list[Row]:
    """The rows with what `tell` says of each supervised token, [M, ...] by name, as token columns."""
    loaded.model.eval()
    found = []
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        ends = np.cumsum([sequence.learn.sum() for row in chosen for sequence in row.sequences])[:-1]
        told = {name: iter(np.split(each.cpu().numpy(), ends)) for name, each in tell(Batch.of(chosen)).items()}
        for row in chosen:
            sequences = (
                replace(each, columns={**each.columns, **{name: next(parts) for name, parts in told.items()}})
                for each in row.sequences
            )
            found.append(replace(row, sequences=tuple(sequences)))
    return found


Back = Callable[[], AbstractContextManager[None]]
"""Within what it gives, a model is the one that training holds it to."""


class Start:
    """The weights that learn, as they were when training began; the others never move."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @contextmanager
    def back(self) -> Iterator[None]:
        """Within this block the model is the one that training began with."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            now = parameter.clone()
            parameter.copy_(self.kept[name])
            self.kept[name] = now
