"""Kahneman-Tversky optimisation (Ethayarajh et al., 2024, arXiv:2402.01306): single answers, each marked as wanted or not."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from tunesmith.base import DataError
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.data.example import Sequence as Tokens
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded

from .base import Loss, Objective, reference

LABEL = "label"
"""Name of the column that tells: 1 for a wanted answer, 0 for one that is not."""
LOOKED = 100
"""Rows after one among which another prompt is looked for."""


class KTO(Objective):
    """Learn from thumbs up and thumbs down. For answers that people judged one by one, with no second answer to compare.

    How far the model has drifted is estimated on each prompt with the answer of the next row that asks something else, over all rows of a step.
    """

    kind: Literal["kto"] = "kto"
    answers: ClassVar[int | None] = 1
    whole: ClassVar[bool] = True
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the model that training starts from; 0.1 in the paper."""
    wanted: float = Field(1.0, ge=0)
    """Weight of wanted answers (lambda_D); the paper has wanted x their number over unwanted x theirs between 1 and 4/3."""
    unwanted: float = Field(1.0, ge=0)
    """Weight of unwanted answers (lambda_U); 1 in the paper, as that of wanted ones."""

    @model_validator(mode="after")
    def _learns_from_some(self) -> Self:
        if not (self.wanted or self.unwanted):
            raise ValueError("wanted and unwanted are both 0, so nothing is learnt from any answer; raise one")
        return self

    @property
    def references(self) -> bool:
        """Its gains are measured from where training starts."""
        return True

    def check(self, rows: Iterable[Row]) -> None:
        """Every row has one answer and says whether it is wanted.

        Raises:
            DataError: naming the first one that does not.
        """
        held = list(rows)
        super().check(held)
        for row in held:
            if row.sequences[0].learn[1]:
                raise DataError(
                    f"{row.origin}: its prompt is learnt too, and kto judges answers; set prepare.supervise=answers"
                )
            if row.columns.get(LABEL) not in (0, 1):
                raise DataError(
                    f"{row.origin}: does not say whether its answer is wanted; objective kto needs a field 'label', true or false, beside the answer"
                )

    def arranged(self, rows: Sequence[Row]) -> list[Row]:
        """Each row with a second sequence: its prompt, answered as the next row's was that asks something else; without any, as the next one's.

        It is cut to the longest row's length, as prepare would: a long answer to a long prompt may be beyond the model's context.
        """
        asked, found = [_prompt(row).tobytes() for row in rows], []
        longest = max(map(len, rows), default=0)
        for place, row in enumerate(rows):
            after = (other % len(rows) for other in range(place + 1, place + min(len(rows), LOOKED)))
            other = next((each for each in after if asked[each] != asked[place]), (place + 1) % len(rows))
            found.append(_beside(row, rows[other], longest))
        return found

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """lambda_y - v(x, y), eq. 7 and 8, summed over rows."""
        logp_R2 = batch.per_sequence(token_logps(loaded, batch)).view(-1, 2)
        start_R2 = torch.stack([batch.columns[reference(answer)] for answer in range(2)], 1).to(logp_R2.device)
        gain_R2 = logp_R2 - start_R2
        drift = gain_R2[:, 1].mean().clamp(min=0).detach()
        wanted_R = batch.columns[LABEL].to(logp_R2.device)
        sign_R = 2 * wanted_R - 1
        weight_R = self.wanted * wanted_R + self.unwanted * (1 - wanted_R)
        value_R = weight_R * torch.sigmoid(self.beta * sign_R * (gain_R2[:, 0] - drift))
        stats = {
            "accuracy": ((gain_R2[:, 0] - drift) * sign_R > 0).float().sum(),
            "margin": (self.beta * sign_R * (gain_R2[:, 0] - drift)).sum(),
            "drift": drift * len(batch.origins),
        }
        return Loss((weight_R - value_R).sum(), {name: value.detach() for name, value in stats.items()})

    def count(self, batch: Batch) -> int:
        """Rows."""
        return len(batch.origins)


def _beside(row: Row, other: Row, longest: int) -> Row:
    own, theirs, prompt = row.sequences[0], other.sequences[0], _prompt(row)
    first = int(np.argmax(theirs.learn))
    learn = np.concatenate([np.zeros(len(prompt), dtype=bool), theirs.learn[first:]])
    tokens = np.concatenate([prompt, theirs.tokens[first:]])
    return replace(row, sequences=(own, Tokens(tokens[:longest], learn[:longest])))


def _prompt(row: Row) -> np.ndarray:
    """Tokens before the answer."""
    own = row.sequences[0]
    return own.tokens[: int(np.argmax(own.learn))]
