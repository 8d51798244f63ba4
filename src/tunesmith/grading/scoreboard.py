"""The scoreboard: every grader's figure for every system, by part and by slice, with paired differences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.base import ConfigError, DataError
from tunesmith.data.classes import values
from tunesmith.data.example import Example

from .base import HEADLINE, Chances, Grader, Likelihood
from .statistics import CONFIDENCE, POWER, RESAMPLES, SEED, Figure, difference, interval

SUBJECT = "tuned"
SMALLEST_SLICE = 10
MOST_SLICES = 20


def scoreboard(
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[str]],
    graders: Sequence[Grader],
    *,
    likelihoods: Mapping[str, Sequence[Likelihood]] | None = None,
    scores: Mapping[str, Sequence[Sequence[float]]] | None = None,
    chances: Mapping[str, Sequence[Chances]] | None = None,
    slices: tuple[str, ...] = (),
    seed: int = SEED,
    subject: str = SUBJECT,
    against: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Compare systems on the same held-out rows.

    Args:
        examples: the held-out rows.
        answers: one answer per row of each system.
        graders: the first one's figure is the headline.
        likelihoods: one Likelihood per row of each system that has them, for the graders that read them.
        scores: likewise, the scores of each row's answers.
        chances: likewise, how probable each class is.
        slices: paths as in `data.classes.values`; each value with at least ten rows is graded alone (the twenty largest per path).
        seed: of the bootstrap and the permutation test.
        subject: the system whose differences from the others are wanted.
        against: the others; by default every other system.

    Returns:
        A JSON value: `rows`, `systems`, `subject`, `seed`, `resamples`, `confidence`, `power`, and per grader `unit`,
        `better`, `digits`, `signature`, `headline`, `systems`, `parts`, `slices` and `differences`. Intervals are 95 % over rows,
        differences are paired, and no correction is made for their number.

    Raises:
        ConfigError: a grader is named twice, or the subject or an opponent was not graded at all.
        DataError: there are no rows, a system has too few outputs, or a grader cannot grade a row.
    """
    given: dict[str, Mapping[str, Sequence[Any]]] = {
        "answers": answers, "likelihoods": likelihoods or {}, "scores": scores or {}, "chances": chances or {},
    }  # fmt: skip
    systems = list(dict.fromkeys(name for outputs in given.values() for name in outputs))
    for outputs in given.values():
        _check(examples, outputs, graders, [subject, *(against or ())], systems)
    opponents = against if against is not None else tuple(name for name in systems if name != subject)
    parts = groups(examples, slices)
    blocks = {}
    for place, grader in enumerate(graders):
        figures = {name: grader.graded(examples, outputs) for name, outputs in given[grader.reads].items()}
        if not figures:
            raise ConfigError(
                f"graders.{place}: {grader.called!r} reads {grader.reads}, and no system has any; leave it out"
            )
        blocks[grader.called] = {
            "unit": grader.unit,
            "better": grader.better,
            "digits": grader.digits,
            "signature": grader.signature,
            "headline": place == 0,
            **_block(figures, parts, subject, opponents, grader.better == "lower", seed),
        }
    return {
        "rows": len(examples),
        "systems": systems,
        "subject": subject,
        "seed": seed,
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "power": POWER,
        "graders": blocks,
    }


def _block(
    figures: Mapping[str, Mapping[str, Figure]],
    groups: Mapping[str, NDArray[np.int64]],
    subject: str,
    opponents: Sequence[str],
    relative: bool,
    seed: int,
) -> dict[str, Any]:
    """What one grader says: per system, per part, per slice, and the subject's differences from its opponents."""
    headlines = {system: found[HEADLINE] for system, found in figures.items()}
    parts = [name for name in next(iter(figures.values())) if name != HEADLINE]
    return {
        "systems": _intervals(headlines, seed),
        "parts": {name: _entry({system: found[name] for system, found in figures.items()}, seed) for name in parts},
        "slices": {
            name: _entry({system: figure.take(rows) for system, figure in headlines.items()}, seed)
            for name, rows in groups.items()
            if any(figure.take(rows).rows for figure in headlines.values())
        },
        "differences": {
            f"{subject} - {other}": difference(
                headlines[subject], headlines[other], relative=relative, seed=seed
            ).to_json()
            for other in opponents
            if subject in headlines and other in headlines
        },
    }


def _entry(figures: Mapping[str, Figure], seed: int) -> dict[str, Any]:
    return {"n": max(figure.rows for figure in figures.values()), "systems": _intervals(figures, seed)}


def _intervals(figures: Mapping[str, Figure], seed: int) -> dict[str, Any]:
    return {system: interval(figure, seed=seed).to_json() for system, figure in figures.items()}


def groups(examples: Sequence[Example], names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Rows of each slice `name=value` that is large enough; a row with several values is in several."""
    found = {}
    for name in names:
        said = [held(example, name) for example in examples]
        largest = Counter(value for values in said for value in values).most_common(MOST_SLICES)
        for value in (value for value, count in largest if count >= SMALLEST_SLICE):
            found[f"{name}={value}"] = np.flatnonzero([value in values for values in said])
    return found


def held(example: Example, name: str) -> tuple[str, ...]:
    """What a row says of a slice's path; nothing if it has no such field."""
    try:
        return values(example, name)
    except DataError:  # test rows of another file need not have the field
        return ()


def _check(
    examples: Sequence[Example],
    outputs: Mapping[str, Sequence[Any]],
    graders: Sequence[Grader],
    wanted: Sequence[str],
    systems: Sequence[str],
) -> None:
    if not examples:
        raise DataError("scoreboard: there are no held-out rows; give the test split at least one row")
    for system, given in outputs.items():
        if len(given) != len(examples):
            raise DataError(
                f"scoreboard: {system!r} has {len(given)} outputs for {len(examples)} rows; give one per row"
            )
    twice = [name for name, count in Counter(grader.called for grader in graders).items() if count > 1]
    if twice or not graders:
        raise ConfigError(
            f"graders: {twice[0]!r} is named twice; name it once" if twice else "graders: is empty; name at least one"
        )
    missing = [name for name in wanted if name not in systems]
    if missing:
        raise ConfigError(f"scoreboard: system {missing[0]!r} has no answers; there are {', '.join(systems)}")
