"""Log-probabilities of the model that training starts from, computed once and kept beside the rows: no second model lives in the loop."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.methods.objectives.base import reference
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded


@torch.no_grad()
def with_references(loaded: Loaded, rows: Sequence[Row], size: int) -> list[Row]:
    """The rows, `size` of them computed together, each with the log-probability of every answer under the model as it is, in nats: columns `reference_0`, `reference_1`, ..."""
    loaded.model.eval()
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: dict[int, Row] = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = Batch.of([rows[number] for number in chosen])
        sums = iter(batch.per_sequence(token_logps(loaded, batch)).tolist())
        for number in chosen:
            row = rows[number]
            columns = {reference(answer): next(sums) for answer in range(len(row.sequences))}
            found[number] = replace(row, columns={**row.columns, **columns})
    return [found[number] for number in range(len(rows))]
