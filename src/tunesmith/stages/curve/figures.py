"""Every figure of a data curve, with intervals over test rows and trainings, and what it says beside the base and the classifiers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.data.example import Example
from tunesmith.grading import HEADLINE, Figure, Grader
from tunesmith.grading.scoreboard import groups
from tunesmith.grading.seeds import Spread, of_groups, over_seeds, together
from tunesmith.grading.statistics import CONFIDENCE, RESAMPLES

from ..compare import Trained
from ..recipe import Recipe
from .forecast import forecast
from .settings import Curve

Series = list[list[Figure]]
"""Per size one figure per training."""


@dataclass(frozen=True)
class Point:
    """What was learnt from so many rows."""

    size: int
    tuned: Trained
    rivals: dict[str, list[list[str]]]
    """Per classifier, per seed its answers, having learnt from the same rows."""


@dataclass(frozen=True)
class Measured:
    """A curve's answers, before they are graded."""

    recipe: Recipe
    spec: Curve
    total: int
    """Rows that the recipe learns from, and the largest size may."""
    labelled: int
    """Rows there are."""
    examples: list[Example]
    """The test rows."""
    base: Trained
    shot: Trained | None
    """The base after worked examples, if that was wanted."""
    points: list[Point]

    @property
    def sizes(self) -> list[int]:
        """Rows learnt from."""
        return [point.size for point in self.points]

    @property
    def slices(self) -> tuple[str, ...]:
        """What results are split by: what the recipe says, or else the classes of its rows."""
        classes = self.recipe.prepare.classes
        return self.recipe.evaluate.slices or ((classes,) if classes else ())


@dataclass(frozen=True)
class Graded:
    """What a grader says of everything that was measured, by the name of the figure."""

    base: dict[str, Figure]
    shot: dict[str, Figure]
    tuned: list[list[dict[str, Figure]]]
    """Per size, per training."""
    rivals: dict[str, list[list[dict[str, Figure]]]]

    @classmethod
    def by(cls, grader: Grader, measured: Measured) -> "Graded":
        """Grade all answers."""
        examples, reads = measured.examples, grader.reads == "answers"
        names = measured.points[0].rivals if reads else ()
        rivals = {
            name: [[grader.graded(examples, one) for one in point.rivals[name]] for point in measured.points]
            for name in names
            if all(name in point.rivals for point in measured.points)
        }
        shot = measured.shot.figures(grader, examples)[0] if measured.shot and reads else {}
        tuned = [point.tuned.figures(grader, examples) for point in measured.points]
        return cls(measured.base.figures(grader, examples)[0], shot, tuned, rivals)

    @property
    def names(self) -> list[str]:
        """Figures that everything tuned has, and the base."""
        return [name for name in self.base if all(name in one for each in self.tuned for one in each)]

    @property
    def said(self) -> bool:
        """Whether each headline of base and tuned speaks of any row."""
        return all(one[HEADLINE].rows for each in ([self.base], *self.tuned) for one in each)

    def taken(self, name: str, rows: np.ndarray | None = None) -> "Graded":
        """One figure, called the headline, of all rows or some."""

        def pick(one: dict[str, Figure]) -> dict[str, Figure]:
            return {HEADLINE: one[name] if rows is None else one[name].take(rows)} if name in one else {}

        def every(series: list[list[dict[str, Figure]]]) -> list[list[dict[str, Figure]]]:
            return [[pick(one) for one in each] for each in series]

        rivals = {system: every(series) for system, series in self.rivals.items()}
        whole = {system: series for system, series in rivals.items() if all(one for each in series for one in each)}
        return Graded(pick(self.base), pick(self.shot), every(self.tuned), whole)


def told(measured: Measured) -> dict[str, Any]:
    """Every figure at every size, and what the headline foretells.

    Returns:
        A JSON value: `rows` (test), `total` (to learn from), `labelled` (there are), `confidence`, `resamples`, `settings`, `schedule`, `stratified`, `sizes` (per size above zero
        its `size`, `settings` and `runs`), `figures` (see `_figure`) and `forecast`.
    """
    recipe, spec = measured.recipe, measured.spec
    graded = [(grader, Graded.by(grader, measured)) for grader in recipe.evaluate.graders]
    figures = [figure for grader, each in graded for figure in _figures(grader, each, measured)]
    grader, first = graded[0]
    return {
        "rows": len(measured.examples),
        "total": measured.total,
        "labelled": measured.labelled,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "settings": spec.model_dump(mode="json"),
        "schedule": schedule(recipe, spec),
        "stratified": recipe.prepare.classes or recipe.prepare.stratify,
        "sizes": [_size(point) for point in measured.points],
        "figures": figures,
        "forecast": forecast(grader, measured.sizes, _series(first.taken(HEADLINE).tuned), measured.labelled, spec),
    }


def schedule(recipe: Recipe, spec: Curve) -> str:
    """How long a training is, in words."""
    return (
        f"{recipe.finetune.epochs:g} epochs in batches of {recipe.finetune.batch}, but at least {spec.least_steps:,} and at most "
        f"{spec.most_steps:,} steps; the learning rate's schedule is stretched over them"
    )


def _size(point: Point) -> dict[str, Any]:
    runs = [
        {"seed": made.manifest["context"]["seed"], "finetune": made.path.name, "ask": said.path.name,
         **{name: made.metrics[name] for name in ("steps", "rows", "step_seconds", "classes") if name in made.metrics}}
        for made, said in zip(point.tuned.finetuned, point.tuned.asked, strict=True)
    ]  # fmt: skip
    return {"size": point.size, "settings": list(point.tuned.variant.settings), "runs": runs}


def _figures(grader: Grader, graded: Graded, measured: Measured) -> Iterator[dict[str, Any]]:
    """A grader's headline, its parts, and its headline by slice; beside parts that are not the first grader's no classifiers stand."""
    about = {
        "grader": grader.called,
        "unit": grader.unit,
        "better": grader.better,
        "digits": grader.digits,
        "signature": grader.signature,
    }
    first = grader is measured.recipe.evaluate.graders[0]
    found = [(name, name == HEADLINE or name in grader.summaries, graded.taken(name)) for name in graded.names]
    slices = groups(measured.examples, measured.slices).items()
    found += [(name, False, graded.taken(HEADLINE, rows)) for name, rows in slices]
    for name, summary, part in found:
        if not part.said:
            continue  # a grader that asks few rows may have asked none of these
        shown = part if first or summary else replace(part, rivals={})
        yield {**about, "name": name, "summary": summary, **_figure(shown, measured.sizes, grader.better)}


def _series(series: list[list[dict[str, Figure]]]) -> Series:
    return [[one[HEADLINE] for one in each] for each in series]


def _figure(graded: Graded, sizes: Sequence[int], better: str) -> dict[str, Any]:
    """One figure: `points` from 0 rows on (`size`, `value`, `low`, `high`, `n`, `seeds`, `against` the base and each classifier, `flag`), `systems`
    (points of each classifier, and the few-shot figure), and what was `gained` from the largest size that is at most half of the last."""
    base, tuned = graded.base[HEADLINE], _series(graded.tuned)
    rivals = {name: _series(series) for name, series in graded.rivals.items()}
    apart = {
        name: _against(tuned, series)
        for name, series in {"base": [[base] * len(each) for each in tuned], **rivals}.items()
    }
    points = [{"size": 0, **_values([[base]])[0], "against": {}, "flag": ""}]
    for place, (size, values) in enumerate(zip(sizes, _values(tuned), strict=True)):
        against = {name: found[place] for name, found in apart.items()}
        points.append({"size": size, **values, "against": against, "flag": _flag(against["base"], better)})
    systems: dict[str, Any] = {
        name: [{"size": size, **values} for size, values in zip(sizes, _values(series), strict=True)]
        for name, series in rivals.items()
    }
    if graded.shot:
        (systems["few-shot"],) = _values([[graded.shot[HEADLINE]]])
    return {"points": points, "systems": systems, "gained": _gained(sizes, tuned)}


def _apart(series: Series) -> list[Spread | None]:
    return of_groups([[one.point for one in each] for each in series])


def _told(series: Series) -> int:
    """Trainings beyond the first of each size that tells something of seeds."""
    points = [[one.point for one in each] for each in series]
    return sum(len(each) - 1 for each in points if len(set(each)) > 1) or sum(len(each) - 1 for each in points)


def _values(series: Series) -> list[dict[str, Any]]:
    """Per size the mean and each training's score; how far trainings lie apart, all sizes tell together."""
    return [
        {**over_seeds(each, apart=apart).to_json(), "seeds": [one.point for one in each]}
        for each, apart in zip(series, _apart(series), strict=True)
    ]


def _against(tuned: Series, others: Series) -> list[dict[str, Any]]:
    """Per size the difference from another system that learnt from the same rows."""
    gaps = [
        [one.point - other.point for one, other in zip(each, beside, strict=True)]
        for each, beside in zip(tuned, others, strict=True)
    ]
    return [
        over_seeds(each, beside, apart=apart).to_json()
        for each, beside, apart in zip(tuned, others, of_groups(gaps), strict=True)
    ]


def _flag(against: dict[str, Any], better: str) -> str:
    """`worse` than the base if the interval says so, `below` it if only the value does."""
    sign = 1 if better == "higher" else -1
    ends = [against[name] for name in ("low", "high")]
    if None not in ends and max(sign * end for end in ends) < 0:
        return "worse"
    return "below" if sign * against["value"] < 0 else ""


def _gained(sizes: Sequence[int], tuned: Series) -> dict[str, Any] | None:
    """The difference of the last size from the largest that is at most half of it, by the seeds that both have."""
    before = max((place for place, size in enumerate(sizes) if 2 * size <= sizes[-1]), default=None)
    if before is None:
        return None
    count, apart = min(len(tuned[before]), len(tuned[-1])), _apart(tuned)
    first, last, known = apart[before], apart[-1], None
    if first and last:
        known = together(first, last)
        known = replace(known, freedom=min(known.freedom, _told(tuned)))  # either may tell of all sizes
    gap = over_seeds(tuned[-1][:count], tuned[before][:count], apart=known)
    return {"from": sizes[before], "to": sizes[-1], **gap.to_json()}
