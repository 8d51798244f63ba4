"""How settings are searched for: the space, the sampler, and how far trials are trained before they are told apart.

After "Crafting Efficient Fine-Tuning Strategies" (Oliver and Wang, 2024, arXiv:2407.13906): a trial is scored at a fifth of its training, the
optimiser goes on from that score, and the best trials are trained to the end.
"""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tunesmith.base import Spec

AUDITED = (0.1, 0.2, 0.4)
"""Shares of a training at which an audit scores it, besides its end."""
RUNGS = (0.1, 0.2, 0.4, 1.0)
"""Shares of a training after which halving sends the better half on."""


class Values(Spec):
    """What a setting may be: the values of a list, or any number of a range."""

    values: tuple[Any, ...] | None = Field(None, min_length=1)
    """Values to choose from; numbers in rising order are taken to be in that order, all else to have none."""
    low: int | float | None = None
    """Least value of a range; whole numbers at both ends mean whole numbers."""
    high: int | float | None = None
    """Largest value of a range."""
    log: bool = False
    """Whether the range is searched by ratios, as suits learning rates."""
    step: int | float | None = Field(None, gt=0)
    """Distance between values of a range; null takes any."""
    times: str | None = None
    """Dotted path of another setting that the value is multiplied by, such as initialise.adapter.rank for alpha."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.values is not None:
            if (self.low, self.high, self.log, self.step) != (None, None, False, None):
                raise ValueError("give a list of values, or low and high, not both")
        elif self.low is None or self.high is None:
            raise ValueError("give a list of values, or low and high")
        elif self.low >= self.high:
            raise ValueError(f"low {self.low} has to be below high {self.high}")
        elif self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm; set log to false, or low above 0")
        elif self.log and self.step is not None:
            raise ValueError("a range searched by ratios has no step; leave step or log out")
        elif self.whole and isinstance(self.step, float):
            raise ValueError(f"a range of whole numbers takes whole steps, not {self.step}")
        return self

    @property
    def whole(self) -> bool:
        """Whether the range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers in rising order."""
        found = self.values or ()
        numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
        return len(numbers) == len(found) > 1 and numbers == sorted(set(numbers))

    @property
    def every(self) -> tuple[Any, ...] | None:
        """All that it may be; None where there is no end to them."""
        if self.values is not None:
            return self.values
        if self.low is None or self.high is None or (self.step is None and (not self.whole or self.log)):
            return None
        step = self.step or 1
        return tuple(self.low + step * number for number in range(int((self.high - self.low) / step + 1e-9) + 1))

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that have to be valid for all to be."""
        return self.values if self.values is not None else (self.low, self.high)


DROPOUT = "initialise.adapter.dropout"
DEFAULT = {
    "initialise.adapter.rank": Values(values=(4, 8, 16, 32, 64)),
    "initialise.adapter.alpha": Values(values=(0.5, 1, 2, 4), times="initialise.adapter.rank"),
    DROPOUT: Values(low=0.0, high=0.1),
    "initialise.adapter.targets": Values(
        values=("all-linear", ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"])
    ),
    "finetune.batch": Values(values=(4, 8, 16)),
    "finetune.schedule.warmup": Values(low=0.0, high=0.1),
}
"""What is searched where a recipe does not say: the learning rate, around the recipe's own, and those of these settings that it has. The paper does
not publish its space; this one is our choice."""

RATE, BELOW, ABOVE = "finetune.optimizer.learning_rate", 30, 10
"""Searched from one BELOW-th of the recipe's own to ABOVE times as much, by ratios: what is usual differs by a factor of a million between optimizers."""


class Search(Spec):
    """How settings are chosen."""

    trials: int = Field(0, ge=0)
    """Trainings to try, the recipe's own settings being the first; 0 takes these as they are. Can be raised later: what was tried is kept."""
    space: dict[str, Values] = Field(default_factory=dict)
    """Settings to search by their dotted path: a list of values, or low and high. Empty takes a default space: learning rate, rank, alpha,
    dropout and target modules of LoRA, batch and warmup."""
    sampler: Literal["gp", "tpe", "random", "grid"] = "gp"
    """Who proposes settings, from the scores so far: a Gaussian process, a tree-structured Parzen estimator, chance, or every combination of lists."""
    start: int = Field(5, ge=1)
    """Trials drawn at random before gp or tpe is asked; the recipe's own is one of them."""
    early: float = Field(0.2, gt=0, lt=1)
    """Share of its training after which a trial is scored and stopped (arXiv:2407.13906); the learning rate's schedule is that of the whole."""
    keep: int = Field(3, ge=1)
    """Trials that go on to the end, the best at the early score; the best of them at the end is the winner."""
    scheme: Literal["early", "halving"] = "early"
    """`early` as above; `halving` scores at 10, 20, 40 and 100 % and sends the better half on each time, whatever `early` and `keep` say."""
    audit: bool = False
    """Train every trial to the end, with scores at 10, 20 and 40 % besides, to see whether the early score could be trusted."""

    @field_validator("space", mode="before")
    @classmethod
    def _lists_are_values(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {path: {"values": each} if isinstance(each, list | tuple) else each for path, each in given.items()}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.audit and self.scheme == "halving":
            raise ValueError(
                "halving stops trials on the way, an audit stops none; set audit to false, or scheme to early"
            )
        endless = [path for path, each in self.space.items() if each.every is None]
        if self.trials and self.sampler == "grid" and (endless or not self.space):
            where = endless[0] if endless else "space"
            raise ValueError(f"a grid needs lists: give {where} a list of values or a step, or take another sampler")
        return self

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of a training after which trials are told apart; the last is its end."""
        return RUNGS if self.scheme == "halving" else (self.early, 1.0)

    def marks(self, rung: int) -> tuple[float, ...]:
        """Shares at which a trial is scored on its way to a rung, the rung's own last."""
        before, until = (0.0, *self.rungs)[rung], self.rungs[rung]
        audited = AUDITED if self.audit else ()
        return (*(mark for mark in audited if before < mark < until), until)
