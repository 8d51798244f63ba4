"""Confusion: per row and class what is true, what was guessed and what of it is right, and the figures that are functions of their sums.

Macro and micro F1 as in scikit-learn; kappa is Cohen's (1960), and over several fields the pooled one (De Vries et al., 2008).
"""

from collections.abc import Sequence, Set

import numpy as np

from .statistics import Array, Value

Label = tuple[str, str]
"""A field's name and a value of it: a class."""


MOST_CLASSES = 500
"""Beyond it nothing is told by class: each class takes 24 bytes a row and system, 240 MB where there are so many and 20,000 rows, and most have too few rows to say anything."""


def confusion(truths: Sequence[Set[Label]], guesses: Sequence[Set[Label]], classes: Sequence[Label]) -> Array:
    """Statistics [N, 3C + 1]: per class right guesses, guesses and truths; last the guesses that are no class."""
    number = {name: index for index, name in enumerate(classes)}
    counted = np.zeros((len(truths), 3, len(classes)))
    outside = np.zeros((len(truths), 1))
    for row, (true, guessed) in enumerate(zip(truths, guesses, strict=True)):
        for kind, labels in enumerate((true & guessed, guessed, true)):
            counted[row, kind, [number[label] for label in labels if label in number]] = 1.0
        outside[row] = len(guessed - number.keys())
    return np.hstack([counted.reshape(len(truths), -1), outside])


def macro_f1(sums: Array) -> Array:
    """Mean over classes of F1 in percent, from the sums [..., 3C + 1] of `confusion`.

    A class without a truth (it may drop out of a bootstrap sample) is left out of the mean.
    """
    hits, guesses, truths = _parts(sums)
    present = truths > 0
    f1 = np.where(present, 2.0 * hits / np.maximum(guesses + truths, 1.0), 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(100.0 * f1.sum(axis=-1) / present.sum(axis=-1))


def micro_f1(sums: Array) -> Array:
    """F1 in percent over all guesses and truths; the share of right rows where each has one truth and one guess."""
    hits, guesses, truths = (part.sum(axis=-1) for part in _parts(sums))
    return np.asarray(200.0 * hits / np.maximum(guesses + sums[..., -1] + truths, 1.0))


def precision(sums: Array) -> Array:
    """Right guesses in percent of guesses, from sums [..., 3] of one class; 0 where it is never guessed."""
    return np.asarray(100.0 * sums[..., 0] / np.maximum(sums[..., 1], 1.0))


def f1(sums: Array) -> Array:
    """F1 in percent, from sums [..., 3] of one class."""
    return np.asarray(200.0 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1.0))


def kappa(fields: Sequence[str]) -> Value:
    """Agreement beyond chance, times 100, for classes that belong to these fields.

    What chance would agree on is computed within each field, from how often its classes are true and guessed. 0 is as good as guessing by
    those shares alone; NaN where only one class is true and guessed.
    """
    member_FC = np.array([[name == field for name in fields] for field in dict.fromkeys(fields)], dtype=np.float64)

    def value(sums: Array) -> Array:
        hits, guesses, truths = _parts(sums)
        chance, asked = (truths * guesses) @ member_FC.T, truths @ member_FC.T
        by_chance = (chance / np.maximum(asked, 1.0)).sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(100.0 * (hits.sum(axis=-1) - by_chance) / (truths.sum(axis=-1) - by_chance))

    return value


def _parts(sums: Array) -> tuple[Array, Array, Array]:
    hits, guesses, truths = np.split(sums[..., :-1], 3, axis=-1)
    return hits, guesses, truths
