"""Figures of how a system ranks rows: average precision, the area under the precision-recall curve, as scikit-learn computes it."""

from dataclasses import dataclass

import numpy as np

from .statistics import Array, Figure


@dataclass(frozen=True)
class Ranked(Figure):
    """Rows ranked once for each of C classes.

    `statistics` [N, 2C] are the probabilities of each class, then whether it is the right one (1 or 0), both NaN where a row is not asked.
    `value` is given the average precision of each class and its prevalence, [..., 2C], in percent.
    """

    @property
    def rows(self) -> int:
        """Units of rows that are of one of the classes."""
        return self._count((np.hsplit(self.statistics, 2)[1] == 1).any(axis=1))

    def gathered(self, weight_RU: Array) -> Array:
        """Average precision and prevalence of each class, [R, 2C], in percent; NaN where no row is of it."""
        of_N = np.arange(len(self.statistics)) if self.unit_N is None else self.unit_N
        precisions, prevalences = [], []
        for score_N, truth_N in zip(*(half.T for half in np.hsplit(self.statistics, 2)), strict=True):
            asked = ~np.isnan(score_N)
            weight_RM, truth_M = weight_RU[:, of_N[asked]], truth_N[asked]
            precisions.append(100.0 * average_precision(score_N[asked], truth_M, weight_RM))
            with np.errstate(divide="ignore", invalid="ignore"):
                prevalences.append(100.0 * (weight_RM @ truth_M) / weight_RM.sum(axis=1))
        return np.stack([*precisions, *prevalences], axis=1)


def average_precision(score_M: Array, truth_M: Array, weight_RM: Array) -> Array:
    """Sum over thresholds of precision times the gain in recall, [R], from 0 to 1; rows of equal score pass a threshold together.

    NaN where nothing is true. A ranking by chance comes to the share of true rows.

    Args:
        score_M: what rows are ranked by, higher first.
        truth_M: 1 or 0.
        weight_RM: how often each row counts.
    """
    order_M = np.argsort(-score_M, kind="stable")
    last = np.flatnonzero(np.diff(score_M[order_M], append=np.nan) != 0)  # of each score
    weight_RM = weight_RM[:, order_M]
    hits_RE = np.cumsum(weight_RM * truth_M[order_M], axis=1)[:, last]
    found_RE = np.cumsum(weight_RM, axis=1)[:, last]
    precision_RE = np.divide(hits_RE, found_RE, out=np.zeros_like(hits_RE), where=found_RE > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            (np.diff(hits_RE, axis=1, prepend=0.0) * precision_RE).sum(axis=1) / (weight_RM @ truth_M[order_M])
        )


def mean_precision(both: Array) -> Array:
    """Mean over classes of average precision; a class that no row is of (it may drop out of a bootstrap sample) is left out."""
    return _mean(both[..., : both.shape[-1] // 2])


def mean_prevalence(both: Array) -> Array:
    """Mean over the same classes of prevalence: what ranking by chance comes to."""
    precision, prevalence = np.split(both, 2, axis=-1)
    return _mean(np.where(np.isnan(precision), np.nan, prevalence))


def _mean(values: Array) -> Array:
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, values, 0.0).sum(axis=-1) / there.sum(axis=-1))
