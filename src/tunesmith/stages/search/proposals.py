"""What to try next: a function of the seed, the trial's number and the scores known, by Optuna (Akiba et al., 2019, arXiv:1907.10902).

Optuna keeps nothing between two proposals. Each time a study is made of the trials that have a score, so there is no second account of
them that a crash could leave in disagreement with the artifacts.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tunesmith.base.extras import extra
from tunesmith.base.files import canonical

from .settings import Search, Values

TRIES = 50
"""Draws at random after which a space is taken to be used up."""

Space = Mapping[str, Values]


@dataclass(frozen=True)
class Known:
    """A trial as the sampler sees it."""

    settings: Mapping[str, Any]
    score: float | None
    """None while it runs, and where it came to nothing: it then counts as the worst so far, so that nothing near it is tried at once."""


def require() -> Any:
    """Optuna.

    Raises:
        MachineError: it is not installed.
    """
    optuna = extra("optuna", "search", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose(
    search: Search, space: Space, seed: int, number: int, known: Sequence[Known], lower_is_better: bool
) -> tuple[dict[str, Any], str] | None:
    """Settings for a trial that none before had, and which sampler they are of; None where all have been tried.

    Args:
        search: the sampler, and from which trial on it is asked.
        space: what is searched.
        seed: of the recipe.
        number: of the trial, from 1 on; trial 0 has the recipe's own settings.
        known: all trials before it.
        lower_is_better: of their scores.
    """
    tried = {canonical(dict(each.settings)) for each in known}
    if search.sampler == "grid":
        return next(((point, "grid") for point in grid(space, seed) if canonical(point) not in tried), None)
    for attempt in range(TRIES):
        kind = search.sampler if number >= search.start and attempt == 0 else "random"
        found = _asked(
            kind,
            space,
            int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0]),
            known,
            lower_is_better,
        )
        if canonical(found) not in tried:
            return found, kind
    return None


def grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """Every combination, in an order drawn at random: a grid that is not finished then has no side that was never looked at."""
    points = list(product(*(values.every or () for values in space.values())))
    order = np.random.default_rng(seed).permutation(len(points))
    return [dict(zip(space, points[place], strict=True)) for place in order]


def _asked(kind: str, space: Space, seed: int, known: Sequence[Known], lower_is_better: bool) -> dict[str, Any]:
    """One answer of a sampler."""
    optuna = require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        samplers = {
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=1),
        }
        study = told(samplers[kind](), space, known, lower_is_better)
        asked = study.ask(distributions(space))
    return {path: read(values, asked.params[path]) for path, values in space.items()}


def told(sampler: Any, space: Space, known: Sequence[Known], lower_is_better: bool) -> Any:
    """A study of the trials that lie in the space; the recipe's own settings may not."""
    optuna = require()
    study = optuna.create_study(direction="minimize" if lower_is_better else "maximize", sampler=sampler)
    scores = [each.score for each in known if each.score is not None]
    where = distributions(space)
    for each in known if scores else ():
        parameters = {path: written(values, each.settings.get(path)) for path, values in space.items()}
        if all(place is not None for place in parameters.values()):
            worst = max(scores) if lower_is_better else min(scores)
            value = worst if each.score is None else each.score
            study.add_trial(optuna.trial.create_trial(params=parameters, distributions=where, value=value))
    return study


def distributions(space: Space) -> dict[str, Any]:
    """Optuna's words for a space: values in rising order are numbered, which keeps their order; others are named."""
    return {path: _distribution(values) for path, values in space.items()}


def _distribution(values: Values) -> Any:
    from optuna import distributions as kinds

    if values.values is not None:
        if values.ordered:
            return kinds.IntDistribution(0, len(values.values) - 1)
        return kinds.CategoricalDistribution([canonical(value) for value in values.values])
    kind = kinds.IntDistribution if values.whole else kinds.FloatDistribution
    step = values.step or (1 if values.whole else None)
    return kind(values.low, values.high, log=values.log, step=step)


def read(values: Values, place: Any) -> Any:
    """The value that Optuna means."""
    if values.values is None:
        return place
    return values.values[place] if values.ordered else json.loads(place)


def written(values: Values, value: Any) -> Any:
    """What Optuna calls a value; None where it is outside of the space."""
    if values.values is not None:
        places = [
            number for number, each in enumerate(values.values) if canonical(each) == canonical(value) or each == value
        ]
        return None if not places else places[0] if values.ordered else canonical(values.values[places[0]])
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    inside = _distribution(values)._contains(value if values.whole else float(value))
    return value if inside and (isinstance(value, int) or not values.whole) else None


def snapped(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in the words of the space where they lie in it, so that what is proposed later can be told to be the same."""
    places = {path: written(space[path], value) for path, value in settings.items()}
    return {
        path: value if places[path] is None else read(space[path], places[path]) for path, value in settings.items()
    }


def importance(space: Space, known: Sequence[Known], lower_is_better: bool) -> dict[str, float]:
    """How much of what tells good trials from all each setting explains, by PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255); none for few trials."""
    optuna = require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = told(None, space, [each for each in known if each.score is not None], lower_is_better)
        if len(study.trials) < 4 or len({trial.value for trial in study.trials}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 2 / len(study.trials)))
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in found.items() if math.isfinite(share)}
