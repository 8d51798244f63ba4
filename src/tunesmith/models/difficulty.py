"""How hard a model finds answers: their mean loss, or EL2N (Paul et al., 2021, arXiv:2107.07075)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row

from .forward import error_norms, token_logps
from .load import Loaded

ROWS = 8
"""Rows scored in one forward pass."""


@torch.no_grad()
def difficulties(loaded: Loaded, rows: Sequence[Row], measure: Literal["loss", "el2n"]) -> NDArray[np.float64]:
    """How hard each row's first answer is, [N], in the mean over its tokens."""
    loaded.model.eval()
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found = np.empty(len(rows))
    for start in range(0, len(order), ROWS):
        some = order[start : start + ROWS]
        batch = Batch.of([Row(rows[number].origin, rows[number].sequences[:1]) for number in some])
        score_M = error_norms(loaded, batch) if measure == "el2n" else -token_logps(loaded, batch)
        count_S = torch.bincount(batch.sequence_M, minlength=len(some))
        found[some] = (batch.per_sequence(score_M).cpu() / count_S).numpy()
    return found
