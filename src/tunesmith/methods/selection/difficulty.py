"""Rows by how hard the model finds their answers before it learns: their mean loss, or EL2N (Paul et al., 2021, arXiv:2107.07075)."""

from typing import ClassVar, Literal, Self

import numpy as np

from .base import Chosen, Pool, Selector


class Difficulty(Selector):
    """The rows that the base finds hardest, in the middle, or easiest. The hardest teach most where there are many and labels are clean, easy ones where there
    are few (Sorscher et al., 2022, arXiv:2206.14486); wrong labels are hard too.

    Of rows with several answers the first counts.
    """

    draws: ClassVar[bool] = False

    kind: Literal["difficulty"] = "difficulty"
    measure: Literal["loss", "el2n"] = "loss"
    """Mean over the answer's tokens of the negative log-likelihood, or of the length of the error, the predicted distribution minus the token that is
    right (EL2N, 0 to 1.41), which no single token can dominate."""
    take: Literal["hardest", "middle", "easiest"] = "middle"
    """Which rows; `middle` leaves out as many harder as easier ones. It is our choice: of debtags the 96 hardest of 1,000 teach far less than any others
    (docs/stages/prepare.md)."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the model computes in while it reads them; `auto` takes bf16 where the machine multiplies it natively, else fp32."""

    def settled(self) -> Self:
        """With `auto` decided."""
        from tunesmith.models.load import resolve_precision

        return self.model_copy(update={"precision": resolve_precision(self.precision)})

    def choose(self, pool: Pool, count: int, seed: int) -> Chosen:
        """By the model as it is found; nothing is drawn."""
        from tunesmith.models.difficulty import difficulties  # torch, which preparing else does without
        from tunesmith.models.load import load

        del seed
        score_N = difficulties(load(pool.model, self.precision), pool.rows, self.measure)
        order_N = np.argsort(-score_N, kind="stable")  # the hardest first; of equals the earlier one
        start = {"hardest": 0, "middle": (len(order_N) - count) // 2, "easiest": len(order_N) - count}[self.take]
        places = order_N[start : start + count]
        mean = {"mean_chosen": round(float(score_N[places].mean()), 4), "mean_all": round(float(score_N.mean()), 4)}
        return Chosen(places, {"measure": self.measure, "take": self.take, **mean})
