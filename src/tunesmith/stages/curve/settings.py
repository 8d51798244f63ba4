"""What a data curve is asked for, and how long each of its trainings is."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from tunesmith.base import ConfigError, Spec
from tunesmith.data.example import Example, Row
from tunesmith.grading import HEADLINE, Grader
from tunesmith.grading.corpus import CorpusGrader

from ..compare import GIVEN, Variant
from ..recipe import Recipe

SMALLEST = 25
"""Rows from which sizes double where none are given; fewer if there are not even eight times as many."""


class Curve(Spec):
    """Which sizes are learnt from, how often and for how long, and what is asked of the curve.

    A size takes the recipe's epochs, but at least `least_steps` and at most `most_steps`: a few rows in the recipe's epochs would say what too few
    steps do, not what too few rows do (Mosbach et al., 2021, arXiv:2006.04884).
    """

    sizes: tuple[int, ...] = ()
    """Rows learnt from; empty doubles from 25 to all there are. 0 is the base model, and is always there."""
    seeds: int = Field(3, ge=1)
    """Trainings of each size, by seeds that follow the recipe's. A seed draws the rows too, the smaller sizes from the larger ones."""
    once_from: int | None = Field(None, ge=1)
    """Sizes from this one on are trained once."""
    least_steps: int = Field(50, ge=1)
    """Fewest steps of a training."""
    most_steps: int = Field(1000, ge=1)
    """Most steps of a training."""
    target: float | None = None
    """A score, to tell how many rows it takes; of a percentage, 0.9 means 90."""
    least_gain: float = Field(1.0, gt=0)
    """What another doubling must bring to be worth it, in the headline's unit."""
    price: float | None = Field(None, ge=0)
    """What labelling a row costs."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if any(size < 0 for size in self.sizes):
            raise ValueError("sizes are counts of rows, from 0 on")
        if self.least_steps > self.most_steps:
            raise ValueError(f"least_steps {self.least_steps} is more than most_steps {self.most_steps}")
        return self

    def seeds_of(self, size: int) -> int:
        """Trainings of a size."""
        return 1 if self.once_from is not None and size >= self.once_from else self.seeds

    def chosen(self, total: int) -> list[int]:
        """The sizes above zero, ascending.

        Raises:
            ConfigError: one is more than there are, or there is none.
        """
        found = sorted({size for size in self.sizes if size} if self.sizes else doubling(total))
        if not found:
            raise ConfigError("data-curve: no size above 0; name some, as --sizes 0,25,50,100")
        if found[-1] > total:
            raise ConfigError(f"data-curve: {found[-1]:,} rows are wanted and there are {total:,} to learn from")
        return found


def doubling(total: int) -> list[int]:
    """Sizes that double up to all rows; the last step may be from half as much again to three times."""
    sizes = [min(SMALLEST, max(1, total // 8))]
    while 3 * sizes[-1] <= total:
        sizes.append(2 * sizes[-1])
    return list(dict.fromkeys([*sizes, total]))


def check(recipe: Recipe, spec: Curve) -> None:
    """Refuse a recipe whose curve would be of something else, and a target that no score can reach.

    Raises:
        ConfigError: with the reason.
    """
    if recipe.prune.method is not None:
        raise ConfigError("data-curve: pruning would be measured along with the rows; set prune.method=null")
    if recipe.finetune.most_tokens is not None:
        raise ConfigError("data-curve: how long a size trains is --most-steps; set finetune.most_tokens=null")
    if recipe.evaluate.prompted:
        raise ConfigError(
            "data-curve: the best prompt is not searched for at every size; set evaluate.prompted=false, and few-shot stands beside the curve"
        )
    if recipe.search.trials:
        raise ConfigError(
            "data-curve: every training would search for settings of its own; set search.trials=0, and the settings that a search of all rows found"
        )
    if recipe.prepare.select is not None:
        raise ConfigError(
            "data-curve: rows would be selected before a size draws its own, anew for every seed; set prepare.select=null"
        )
    if recipe.prepare.canaries is not None:
        raise ConfigError(
            "data-curve: canaries would be learnt at every size, among few rows most of all; set prepare.canaries=null"
        )
    _check_target(recipe.evaluate.graders[0], spec.target)


def _check_target(grader: Grader, target: float | None) -> None:
    if target is None:
        return
    percent = grader.unit.startswith("%")
    hundred = percent or grader.unit.startswith("points") or (isinstance(grader, CorpusGrader) and grader.top == 100)
    if hundred and not 0 < target <= 100:
        share = ", or a share of up to 1" if percent else ""
        raise ConfigError(
            f"data-curve: the target is {target:g}, and the scale of {grader.unit} goes from 0 to 100; name a target above 0 and up to 100{share}"
        )
    if grader.better == "lower" and target < grader.least:
        raise ConfigError(
            f"data-curve: the target is {target:g}, and no {grader.unit} is below {grader.least:g}; name a target from {grader.least:g} on"
        )


def check_reachable(recipe: Recipe, spec: Curve, rows: Sequence[Row], examples: Sequence[Example]) -> None:
    """Refuse what can only be told from the rows, before anything is trained on them.

    Raises:
        ConfigError: not even the right answers to the test rows reach the target.
        DataError: there are fewer rows than the recipe learns from.
    """
    recipe.finetune.places(rows, recipe.seed)
    grader, target = recipe.evaluate.graders[0], spec.target
    if target is None or grader.reads != "answers" or grader.better == "lower":
        return
    top = grader.figures(examples, [example.gold for example in examples])[HEADLINE].top
    if top is not None and target > top:
        raise ConfigError(
            f"data-curve: the target is {target:g}, and no {grader.unit} is above {top:g}; name a target of up to that"
        )


def variant(recipe: Recipe, rows: Sequence[Row], total: int, size: int, spec: Curve) -> Variant:
    """The recipe as it learns from so many rows; where that is what it does anyway, the recipe itself."""
    tune = recipe.finetune
    change: dict[str, Any] = {} if size == total else {"rows": size}
    asked = tune.model_copy(update=change)
    learnt = [rows[place] for place in asked.places(rows, recipe.seed)]
    data = asked.dataset(asked.objective.arranged(learnt), recipe.seed)
    steps = min(max(data.steps, spec.least_steps), spec.most_steps)
    if steps != data.steps:
        change["epochs"] = round(steps / data.steps_per_epoch, 6)
    if not change:
        return Variant(GIVEN, (), recipe)
    settings = tuple(f"finetune.{name}={value}" for name, value in change.items())
    changed = recipe.model_copy(update={"finetune": tune.model_copy(update=change)})
    return Variant(f"{size:,} rows", settings, changed)
