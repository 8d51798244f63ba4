"""A score as a function of the rows learnt from, fitted to a few sizes: what more rows would bring, with a band.

What is missing to the best possible score falls with n rows to a floor d: as a power, d + b n^-c (Hestness et al. 2017, arXiv:1712.00409), or towards
saturation, d + b exp(-n / c) or d + b c / (n + c) (Michaelis and Menten 1913). Which of them is chosen by how well it tells sizes that were held out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .extras import extra
from .seeds import of_groups
from .statistics import CONFIDENCE, SEED, Array, Figure, replicates

RESAMPLES = 300
"""Bootstrap samples that a band is made of; each is fitted anew."""
FEWEST = 3
"""Sizes that a form with three numbers needs."""
FARTHEST = 1000
"""How many times as many rows as were learnt from are still asked about."""
ALIKE = 2.0
"""Forms whose errors are no further apart than this factor are about as good."""
_STEPS = 12  # of the first look for c, before it is refined between neighbours


@dataclass(frozen=True)
class Form:
    """One way to fall: `decay(n, c)` from about 1 to 0."""

    name: str
    formula: str
    decay: Callable[[Array, float], Array]
    low: float
    high: float
    """Where c is looked for; of saturating forms in multiples of the smallest and the largest size."""
    of_rows: bool
    """Whether c is a number of rows."""

    def bounds(self, size_K: Array) -> tuple[float, float]:
        """Of the logarithm of c."""
        ends = (size_K[0], size_K[-1]) if self.of_rows else (1.0, 1.0)
        return math.log(self.low * ends[0]), math.log(self.high * ends[1])


FORMS = (
    Form("power law", "d + b n^-c", lambda n, c: n**-c, 0.02, 3.0, False),
    Form("exponential", "d + b exp(-n / c)", lambda n, c: np.exp(-n / c), 0.3, 10.0, True),
    Form("Michaelis-Menten", "d + b c / (n + c)", lambda n, c: c / (n + c), 0.1, 10.0, True),
)


@dataclass(frozen=True)
class Fit:
    """A form with its numbers, b and d at least zero: more rows never harm, and no score is beyond the best possible one."""

    form: Form
    d: float
    b: float
    c: float

    def __call__(self, size: Array) -> Array:
        """What is missing to the best possible score, at each size."""
        return np.asarray(self.d + self.b * self.form.decay(size, self.c))


def fit(form: Form, size_K: Array, short_K: Array, weight_K: Array) -> Fit:
    """Least squares: for each c the best d and b are known (non-negative least squares), and c is looked for.

    Args:
        form: what is fitted.
        size_K: rows learnt from, ascending, above zero.
        short_K: what is missing to the best possible score.
        weight_K: one over the standard error of each.
    """
    nnls, minimize_scalar = extra("scipy.optimize").nnls, extra("scipy.optimize").minimize_scalar

    def solved(log_c: float) -> tuple[Any, float]:
        columns = np.stack([np.ones_like(size_K), form.decay(size_K, math.exp(log_c))], axis=1)
        found: tuple[Any, float] = nnls(columns * weight_K[:, None], short_K * weight_K)
        return found

    places = np.linspace(*form.bounds(size_K), _STEPS)
    best = int(np.argmin([solved(place)[1] for place in places]))
    ends = places[max(best - 1, 0)], places[min(best + 1, _STEPS - 1)]
    log_c = minimize_scalar(lambda place: solved(place)[1], bounds=ends, method="bounded", options={"xatol": 1e-2}).x
    d, b = solved(log_c)[0]
    return Fit(form, float(d), float(b), math.exp(log_c))


def held_out(form: Form, size_K: Array, short_K: Array, weight_K: Array) -> float:
    """Root mean square of what the form is off at sizes that it was not fitted to; infinite if there are none to spare.

    Half of it is of each size left out in turn, half of each size from those below it alone: the one sees the whole shape, the other what lies ahead.
    """
    count = len(size_K)
    if count <= FEWEST:
        return math.inf

    def off(kept: Any, place: int) -> float:
        found = fit(form, size_K[kept], short_K[kept], weight_K[kept])
        return float(found(size_K[place]) - short_K[place]) ** 2

    places = np.arange(count)
    apart = [off(places[places != place], place) for place in range(count)]
    ahead = [off(places[:place], place) for place in range(FEWEST, count)]
    return math.sqrt((np.mean(apart) + np.mean(ahead)) / 2)


@dataclass(frozen=True)
class LearningCurve:
    """Scores at a few sizes, and what they say of other sizes."""

    size_K: Array
    """Rows learnt from, ascending, above zero; at least FEWEST of them."""
    value_K: Array
    """The scores."""
    value_RK: Array
    """The scores that other test rows and other seeds would have given, a bootstrap sample a line."""
    best: float
    """The best possible score."""
    seed_R: Array | None = None
    """By how much a training with another seed may come out above or below the mean over seeds, drawn anew for each sample; None is not known."""
    lower: bool = False
    """Whether lower scores are better."""

    def short(self, value: Array) -> Array:
        """From scores to what is missing to the best possible one."""
        return value - self.best if self.lower else self.best - value

    def score(self, short: Array) -> Array:
        """The way back."""
        return self.best + short if self.lower else self.best - short

    @cached_property
    def weights(self) -> Array:
        """One over each score's standard error; no size counts more than ten times as much as another."""
        error_K = self.value_RK.std(axis=0, ddof=1)
        return np.asarray(1.0 / np.maximum(error_K, max(error_K.max() / 10, 1e-9)))

    @cached_property
    def errors(self) -> dict[str, float]:
        """Per form how far it is off at sizes held out, see `held_out`."""
        return {form.name: held_out(form, self.size_K, self.short(self.value_K), self.weights) for form in FORMS}

    @cached_property
    def fit(self) -> Fit:
        """What is taken to be the curve: the form that is least off; the first where that cannot be told."""
        best = min(FORMS, key=lambda form: self.errors[form.name])
        return fit(best, self.size_K, self.short(self.value_K), self.weights)

    @cached_property
    def fits(self) -> list[Fit]:
        """A curve for each bootstrap sample, by those forms in turn that are about as little off: a band must not be surer of the form than the sizes are."""
        most = ALIKE * min(self.errors.values())
        alike = [form for form in FORMS if self.errors[form.name] <= most]
        samples = enumerate(self.short(self.value_RK))
        return [fit(alike[number % len(alike)], self.size_K, short_K, self.weights) for number, short_K in samples]

    def at(self, size: Array) -> Array:
        """The score at each size."""
        return self.score(self.fit(size))

    def band(self, size: Array) -> tuple[Array, Array]:
        """The ends of the 95 % interval of the score that a training on so many rows will have: other rows, another seed, another form."""
        told_RK = np.stack([self.score(one(size)) for one in self.fits])
        if self.seed_R is not None:
            told_RK = self.score(np.maximum(self.short(told_RK + self.seed_R[:, None]), 0.0))
        low, high = ends(told_RK)
        return low, high

    @cached_property
    def grid(self) -> Array:
        """Sizes a percent apart, from the smallest to FARTHEST times the largest."""
        count = math.ceil(math.log(FARTHEST * self.size_K[-1] / self.size_K[0]) / math.log(1.01))
        return np.geomspace(self.size_K[0], FARTHEST * self.size_K[-1], count + 1)

    def reaching(self, target: float) -> "Rows":
        """How many rows it takes to score so much."""
        short = float(self.short(np.array(target)))
        return self._rows(lambda one: _first(one(self.grid) <= short))

    def enough(self, least_gain: float) -> "Rows":
        """The size past which no doubling gains so much."""
        return self._rows(lambda one: _behind(one(self.grid) - one(2 * self.grid) >= least_gain))

    def _rows(self, place: Callable[[Fit], int]) -> "Rows":
        size = np.append(self.grid, math.inf)
        value_R = np.sort([size[place(one)] for one in self.fits])
        tail = (1 - CONFIDENCE) / 2 * (len(value_R) - 1)
        low, high = value_R[math.floor(tail)], value_R[math.ceil(len(value_R) - 1 - tail)]
        return Rows(*(_whole(value) for value in (size[place(self.fit)], low, high)))

    def calibration(self) -> list[dict[str, Any]]:
        """For every first few sizes, what they foretell of each size after them, and whether its band holds the score that was measured.

        The test rows are the same, so the band is one of the difference; it holds the score if the difference's holds zero.
        """
        found = []
        for first in range(FEWEST, len(self.size_K)):
            part = replace(
                self, size_K=self.size_K[:first], value_K=self.value_K[:first], value_RK=self.value_RK[:, :first]
            )
            told_RK = np.stack([self.score(one(self.size_K[first:])) for one in part.fits])
            low, high = ends(told_RK - self.value_RK[:, first:])
            for place, size in enumerate(self.size_K[first:].tolist()):
                value = float(self.value_K[first + place])
                told = {"from": int(self.size_K[first - 1]), "size": int(size), "foretold": float(part.at(np.array(size))),
                        "low": value + float(low[place]), "high": value + float(high[place]), "value": value}  # fmt: skip
                found.append({**told, "held": bool(low[place] <= 0 <= high[place])})
        return found


@dataclass(frozen=True)
class Rows:
    """A number of rows with its 95 % interval; None is more than were asked about."""

    value: int | None
    low: int | None
    high: int | None


def ends(value_RK: Array) -> tuple[Array, Array]:
    """The 95 % interval of each column."""
    low, high = np.quantile(value_RK, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def by_seed(figures: Sequence[Sequence[Figure]], *, resamples: int = RESAMPLES, seed: int = SEED) -> Array | None:
    """By how much a training with another seed comes out above or below the mean, a draw of Student's t for each sample [R]; None where no size was trained twice.

    It is taken to do so as at the largest size that was trained several times, of which the other sizes tell too (`seeds.of_groups`).

    Args:
        figures: as of `resampled`.
        resamples: samples.
        seed: of the draws.
    """
    several = [[one.point for one in each] for each in figures if len(each) > 1]
    apart = of_groups(several)[-1] if several else None
    if apart is None:
        return None
    drawn_R = np.random.default_rng([seed, len(figures), 1]).standard_t(apart.freedom, size=resamples)
    return np.asarray(apart.deviation * drawn_R)


def _first(true_G: Any) -> int:
    return int(np.argmax(true_G)) if true_G.any() else len(true_G)


def _behind(true_G: Any) -> int:
    """The place behind the last that is true."""
    return len(true_G) - _first(true_G[::-1]) if true_G.any() else 0


def _whole(size: float) -> int | None:
    return math.ceil(size) if math.isfinite(size) else None


def best_possible(figure: Figure, better: str) -> float | None:
    """The best score there is; None if there is no such limit."""
    if better == "higher":
        return figure.top
    return figure.floor if math.isfinite(figure.floor) else None


def resampled(figures: Sequence[Sequence[Figure]], *, resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """Mean scores over trainings that other test rows and other seeds would have given, [R, K].

    Rows are resampled alike for all sizes, trainings for each size by itself. One that was trained once is as uncertain of its seed as the size nearest
    below it that was trained several times, or the nearest above.

    Args:
        figures: per size one per training, all on the same rows.
        resamples: bootstrap samples.
        seed: of the bootstrap.
    """
    value_KSR = [np.stack([replicates(one, seed=seed, resamples=resamples) for one in each]) for each in figures]
    several = [place for place, value_SR in enumerate(value_KSR) if len(value_SR) > 1]
    columns = []
    for place, value_SR in enumerate(value_KSR):
        value_R, count = value_SR.mean(axis=0), len(value_SR)
        if several:
            like_SR = value_KSR[max((one for one in several if one <= place), default=several[0])]
            gap_SR = math.sqrt(len(like_SR) / (len(like_SR) - 1)) * (like_SR - like_SR.mean(axis=0))
            drawn_CR = np.random.default_rng([seed, place]).integers(0, len(like_SR), size=(count, resamples))
            value_R = value_R + np.take_along_axis(gap_SR, drawn_CR, axis=0).mean(axis=0)
        columns.append(value_R)
    return np.stack(columns, axis=1)
