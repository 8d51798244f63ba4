"""Which rows are learnt from where fewer are wanted than there are: nested, and of every class as many as its share."""

from collections.abc import Sequence

import numpy as np

from .classes import rarest
from .example import Row


def subset(rows: Sequence[Row], wanted: int, seed: int) -> list[int]:
    """Places of `wanted` rows, ascending; those of a smaller number are among those of a larger one, for the same seed."""
    return sorted(ordered([row.classes for row in rows], seed)[:wanted].tolist())


def ordered(classes: Sequence[Sequence[str]], seed: int) -> np.ndarray:
    """int64 [N]: places of all rows in the order in which they are taken.

    Each class of n rows is shuffled and spread over the whole order at distances of 1 / n from a random start. So of the first m of N rows it has
    m n / N but for less than 1 + K n / N, K being the number of classes, and a class with few rows is as likely to be early as late.

    Args:
        classes: per row its values, as in `Row.classes`; of several the rarest is its class.
        seed: another seed is another order.
    """
    _, _, class_N = rarest(classes)
    generator = np.random.default_rng([seed, len(class_N)])
    when_N = np.empty(len(class_N))
    for number in np.unique(class_N):
        members = generator.permutation(np.flatnonzero(class_N == number))
        when_N[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(when_N, kind="stable")
