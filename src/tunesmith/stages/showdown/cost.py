"""What a run costs in token passes, the same count on every machine, and in seconds and memory of this one."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tunesmith.base import Artifact, ConfigError, Run
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_split
from tunesmith.grading import AnswerGrader
from tunesmith.training.balance import Balance
from tunesmith.training.batches import Dataset

from ..estimate import Passes, Workload, measuring
from ..recipe import Recipe

MORE = 3
"""Times as many epochs as answers would allow that are all different, for answers of which many are alike: a ceiling."""


@dataclass(frozen=True)
class Cost:
    """What was spent."""

    passes: int = 0
    """Tokens through the model, times forward passes' worth of work on each."""
    learnt: int = 0
    """Tokens through the model forwards and backwards; a prefix that rows of a step share counts once, however they pass."""
    sampled: int = 0
    """Tokens that the model wrote."""
    seconds: float = 0.0
    """Of sampling and of training steps; loading, checking and measuring are left out."""
    peak_memory_mb: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return replace(Cost(**sums), peak_memory_mb=max(self.peak_memory_mb, other.peak_memory_mb))


def per_token(recipe: Recipe) -> float:
    """Forward passes' worth of work on a token of a step, from sampling to learning.

    A backward pass is one for what goes through the layers and one more for the weights' own gradients (Kaplan et al., 2020,
    arXiv:2001.08361, 2.1), which frozen ones do not have.
    """
    tune, passes = recipe.finetune, Passes.of(recipe.finetune.optimizer)
    backward = 1 if recipe.initialise.adapter.adds_weights else 2
    learning = passes.with_gradient * (1 + backward) + passes.without
    if tune.rollouts is None:
        return learning
    made = 1 + sum(not isinstance(each.grader, AnswerGrader) for each in tune.rollouts.rewards)  # a model reads them
    data = tune.model_copy(update={"balance": Balance()}).dataset([], recipe.seed)  # there are no rows to draw from
    return learning + made / data.repeats + measuring(tune.objective, data)


def affordable(recipe: Recipe, prepared: Artifact, left: float, name: str) -> Recipe:
    """The recipe with as many epochs as so many token passes are enough for.

    Answers yet to be sampled are taken to be as long as the rows' own. Some will be alike, more and more as the model gets surer, and what is alike is computed
    once: where no rate falls with the epochs, there are more of these than that, and training ends when the passes are spent.

    Raises:
        ConfigError: not even one step can be afforded.
    """
    tune, rows = recipe.finetune, _learnt(recipe, prepared)
    once = in_an_epoch(tune.model_copy(update=_expected(recipe, rows)).dataset(rows, recipe.seed))
    epochs = (left - _measuring(recipe, rows)) / (once * per_token(recipe))
    if epochs * tune.dataset(rows, recipe.seed).steps_per_epoch < 1:
        raise ConfigError(
            f"{name}: of its budget {max(left, 0):,.0f} token passes are left for training, not enough for one step; raise budget, or sample less"
        )
    limits: dict[str, Any] = {"epochs": round(epochs, 4)}
    if tune.rollouts is not None and tune.schedule.endless:
        limits = {"epochs": round(MORE * epochs, 4), "most_tokens": max(1, round(left / per_token(recipe)))}
    return recipe.model_copy(update={"finetune": tune.model_copy(update=limits)})


def _learnt(recipe: Recipe, prepared: Artifact) -> list[Row]:
    """The rows of a training, as its objective reads them."""
    tune, rows = recipe.finetune, load_split(prepared.path, "train")
    rows = [rows[place] for place in tune.places(rows, recipe.seed)]
    tune.objective.check(rows)
    return list(tune.objective.arranged(rows))


def _expected(recipe: Recipe, rows: list[Row]) -> dict[str, Any]:
    rollouts = recipe.finetune.rollouts
    if rollouts is None:
        return {}
    length = round(float(np.mean([row.sequences[0].learn.sum() for row in rows])))
    return {"rollouts": rollouts.model_copy(update={"max_tokens": min(max(length, 1), rollouts.max_tokens)})}


def _measuring(recipe: Recipe, rows: list[Row]) -> float:
    """Token passes in which the start and other models read all rows, once for all epochs; where answers are sampled, a token of a step counts them."""
    tune = recipe.finetune
    if tune.rollouts is not None:
        return 0.0
    data = replace(tune.dataset(rows, recipe.seed), draw=None)
    return in_an_epoch(data) * measuring(tune.objective, data) * data.epochs


def in_an_epoch(data: Dataset) -> float:
    """Tokens that are computed in an epoch, of the rows that it draws."""
    work = Workload(replace(data, micro_batch=data.batch, share=True))  # as `finetune.most_tokens` counts
    once = sum(int(epoch.sum()) for epoch in work.epochs) / len(work.epochs)
    return once * data.repeats * work.shared


def of_sampling(made: Artifact) -> Cost:
    """What sampling rows took."""
    found = made.metrics
    passes = found["prompt_tokens"] + found["answer_tokens"]
    return Cost(passes, 0, found["answer_tokens"], found["seconds"], found["peak_memory_mb"])


def of_training(recipe: Recipe, run: Run, prepared: Artifact, made: Artifact) -> Cost:
    """What a training took, by what its steps said."""
    tune, found = recipe.finetune, made.metrics
    events = run.events.tagged(artifact=made.path.name).read("step")
    steps = list({event["step"]: event for event in events}.values())  # a resumed run repeats some
    learnt = sum(event["learnt"] for event in steps)
    sampled = 0
    if tune.rollouts is not None:
        sampled = sum(event["sampled_tokens"] for event in steps[:: tune.rollouts.updates])
    rows = _learnt(recipe, prepared)
    passes = round(_measuring(recipe, rows) + learnt * per_token(recipe))
    return Cost(passes, learnt, sampled, found["step_seconds"], found["peak_memory_mb"])


def together(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())
