"""Whether early scores could be trusted: how they agree with the scores at the end, beside what chance alone would bring."""

import math
from collections.abc import Collection, Sequence
from statistics import NormalDist
from typing import Any

from tunesmith.base.extras import extra

TOP = 5
"""Trials whose staying at the top is counted, as in arXiv:2407.13906: 4 of 5 there."""
CONFIDENCE = 0.95


def trust(early: Sequence[float], final: Sequence[float], lower_is_better: bool) -> dict[str, Any]:
    """Agreement of scores on the way with those at the end, of the same trials in the same order.

    Returns:
        A JSON value: `trials`; `spearman` and `kendall` (tau-b) with `value`, `low` and `high`, None for fewer than three trials or where all
        scores are equal; of the best `top` trials on the way how many stayed among the best at the end (`stayed`), how many chance alone would
        leave there (`chance`), and how likely chance leaves as many or more (`p`).
    """
    stats = extra("scipy.stats", "search", "search")
    count, top = len(early), min(TOP, len(early))
    chosen = _best(early, top, lower_is_better, frozenset())
    stayed = len(chosen & _best(final, top, lower_is_better, chosen))
    tied = min(len(set(early)), len(set(final))) < 2
    spearman = kendall = None
    if count >= 3 and not tied:
        rho, tau = (float(found(early, final).statistic) for found in (stats.spearmanr, stats.kendalltau))
        # Variances of Bonett and Wright, 2000, and of Fieller, Hartley and Pearson, 1957; one swap of neighbours takes off so much
        spearman = _interval(rho, (1 + rho**2 / 2) / (count - 3) if count > 3 else math.inf, 12 / (count**3 - count))
        kendall = _interval(tau, 0.437 / (count - 4) if count > 4 else math.inf, 4 / (count**2 - count))
    return {
        "trials": count,
        "spearman": spearman,
        "kendall": kendall,
        "top": top,
        "stayed": stayed,
        "chance": top * top / count if count else 0.0,
        "p": float(stats.hypergeom.sf(stayed - 1, count, top, top)) if count else 1.0,
    }


def _best(scores: Sequence[float], top: int, lower_is_better: bool, last: Collection[int]) -> set[int]:
    """Places of the best; of equals those that are not in `last` first, the earlier before the later: no tie speaks for the early score."""
    sign = 1 if lower_is_better else -1
    order = sorted(range(len(scores)), key=lambda place: (sign * scores[place], place in last, place))
    return set(order[:top])


def _interval(value: float, variance: float, swap: float) -> dict[str, float]:
    """A correlation with its interval, by Fisher's transformation.

    That has no end at 1, so the interval of a perfect order is that of one with two neighbours swapped. Too few trials bound it by nothing.
    """
    reach = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(variance)
    middle = math.atanh(min(max(value, swap - 1), 1 - swap))
    return {"value": value, "low": min(value, math.tanh(middle - reach)), "high": max(value, math.tanh(middle + reach))}
