"""Checks of traffic against a reference: a p-value, and an effect too, since p alone calls any large log drifted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FOLDS = 5
TEXTS = 1_000
"""Texts of either side that the classifier sees; more make it slower, not wiser."""
WORDS = 8


@dataclass(frozen=True)
class Check:
    """One question put to the log, and its answer."""

    name: str
    effect: float | None
    """How far traffic is from what was expected; None if that was not judged."""
    limit: float | None
    """The effect from which on it matters."""
    p: float | None
    """Probability of such a difference, were there none (or, for rates, were the true one at the limit)."""
    n: int
    """Requests it rests on."""
    says: str
    """The finding in words, or why there is none."""
    adjusted: float | None = None
    """p after Benjamini and Hochberg's correction for the number of checks."""
    alert: bool = False

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON value."""
        return asdict(self)


def unjudged(name: str, n: int, why: str) -> Check:
    """A check that could not be made."""
    return Check(name, None, None, None, n, f"not judged: {why}")


def lengths(name: str, reference: Sequence[int], seen: Sequence[int], limit: float) -> Check:
    """Kolmogorov and Smirnov's two-sample test; the effect is the largest gap between the distribution functions."""
    from scipy import stats

    found = stats.ks_2samp(reference, seen, method="asymp")
    median, before = np.median(seen), np.median(reference)
    says = (
        f"median {median:.0f} characters, expected {before:.0f} (gap of the distributions {found.statistic:.2f} of 1)"
    )
    return Check(name, float(found.statistic), limit, float(found.pvalue), len(seen), says)


def vocabulary(name: str, reference: Sequence[str], seen: Sequence[str], limit: float, seed: int) -> Check:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017): can logistic regression on TF-IDF tell the sides apart?

    The effect is the area under the ROC curve on held-out folds, 0.5 where nothing can be told; p is Mann and Whitney's
    on the same scores. A text that was asked often counts once, else the classifier would know it from another fold.
    """
    from scipy import stats
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    known, new = _sample(reference, seed), _sample(seen, seed)
    if min(len(known), len(new)) < 2 * FOLDS:
        return unjudged(name, len(seen), f"only {min(len(known), len(new))} different texts, {2 * FOLDS} are needed")
    label = np.repeat([0, 1], [len(known), len(new)])
    vectorizer = TfidfVectorizer(max_features=50_000, token_pattern=r"(?u)\w+|[^\w\s]")
    weight = vectorizer.fit_transform([*known, *new])
    model = LogisticRegression(class_weight="balanced", solver="liblinear", C=10.0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with threadpool_limits(1):  # the work is small; threads that wait for each other made it a hundred times slower
        score = cross_val_predict(model, weight, label, cv=folds, method="decision_function")
        strongest = np.argsort(-model.fit(weight, label).coef_[0])[:WORDS]
    found = stats.mannwhitneyu(score[label == 1], score[label == 0], alternative="greater")
    area = float(found.statistic) / (len(known) * len(new))
    words = ", ".join(vectorizer.get_feature_names_out()[strongest])
    says = (
        f"a classifier tells requests from training prompts with AUC {area:.2f} (0.5 is chance), above all by: {words}"
    )
    return Check(name, area, limit, float(found.pvalue), len(seen), says)


def share(name: str, hits: int, n: int, limit: float, says: str) -> Check:
    """Exact binomial test of whether a share of bad outcomes is above `limit`."""
    from scipy import stats

    p = float(stats.binomtest(hits, n, min(limit, 1.0), alternative="greater").pvalue)
    return Check(name, hits / n, limit, p, n, says)


def judge(checks: Sequence[Check], alpha: float) -> list[Check]:
    """The checks with adjusted p-values; one alerts if significant at `alpha` and its effect reaches its limit."""
    from scipy import stats

    judged = [check for check in checks if check.p is not None]
    if not judged:
        return list(checks)
    adjusted = dict(
        zip((check.name for check in judged), stats.false_discovery_control([check.p for check in judged]), strict=True)
    )
    return [_judged(check, float(adjusted[check.name]), alpha) if check.name in adjusted else check for check in checks]


def _judged(check: Check, adjusted: float, alpha: float) -> Check:
    reached = check.effect is not None and check.limit is not None and check.effect >= check.limit
    return Check(**{**check.to_json(), "adjusted": adjusted, "alert": reached and adjusted <= alpha})


def _sample(texts: Sequence[str], seed: int) -> list[str]:
    """Different texts, at most TEXTS, chosen at random."""
    different = sorted(set(texts))
    chosen = np.random.default_rng(seed).permutation(len(different))[:TEXTS]
    return [different[number] for number in chosen]
