"""Rows drawn at random within each class, so many that classes keep their proportions."""

from typing import Literal

import numpy as np

from tunesmith.base import DataError
from tunesmith.data.classes import ANSWER, NONE, rarest, values
from tunesmith.data.split import shares

from .base import Chosen, Pool, Selector


class Stratified(Selector):
    """As many rows of each class as are its share, to less than one row: for classes so rare that chance might leave them out."""

    kind: Literal["stratified"] = "stratified"
    by: str = ANSWER
    """What keeps its proportions, named as in `prepare.classes`; of several values of a row the rarest counts."""

    def choose(self, pool: Pool, count: int, seed: int) -> Chosen:
        """Shares by the method of largest remainders."""
        names, _, class_N = rarest(values(example, self.by) for example in pool.examples)
        if names == [NONE]:
            raise DataError(f"prepare.select.by: no row's answer has {self.by!r}; name a field that is there")
        members = {names[number]: np.flatnonzero(class_N == number) for number in np.unique(class_N).tolist()}
        wanted = shares({name: len(each) for name, each in members.items()}, count)
        draw = np.random.default_rng(seed)
        chosen = [draw.permutation(members[name])[: wanted[name]] for name in sorted(members)]
        return Chosen(np.concatenate(chosen), {"by": self.by, "classes": len(members)})
