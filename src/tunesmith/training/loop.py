"""The training loop. There is one."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch, distinct
from tunesmith.methods.objectives import Objective
from tunesmith.models.load import Loaded

from .ranks import ALONE, Ranks


class NotFinite(ModelError):
    """The loss or a gradient of a step is not finite, so the step was not applied."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    number: int
    """Counted from 0."""
    loss: float
    """Mean over what the objective counts, and over all passes of an optimizer that takes no gradient; of a step that was left out, nan."""
    stats: dict[str, float]
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens of the rows as given."""
    distinct: int
    """Tokens that were computed: a prefix common to rows of a micro-batch counts once."""
    learnt: int
    """The same with a prefix common to rows of the step counted once, whatever micro-batches they pass in."""
    skipped: str = ""
    """Why it was left out: what was not finite, and the rows of the batch. Nothing was moved by it, moments included."""


def train(
    loaded: Loaded,
    objective: Objective,
    steps: Iterable[list[Batch]],
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    *,
    seed: int,
    first: int = 0,
    clip: float = 1.0,
    skips: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[Step]:
    """Fit a model to an objective and yield after every optimizer step.

    What happens between steps (logging, evaluating, saving, stopping early) is plain code in the caller's `for`. Random draws of a pass depend on the
    seed, the step and the pass's place in it alone, so a run that goes on from step n is the run that was never stopped, and one whose passes several
    processes share is the run of one.

    Raises:
        NotFinite: the loss or a gradient is not, and so many steps were left out for that already as `skips` allows; the weights are
            those of the step before.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    for number, batches in enumerate(steps, start=first):
        # Each time, since whoever evaluates between steps may have turned it off. Where answers were sampled, their old log-probabilities were
        # measured without dropout: with it the ratio to them would be noise on the first update already.
        loaded.model.train(not objective.rollouts)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor(number)
        found = Sums(loaded, objective, optimizer, batches, seed * 1_000_003 + number, clip, ranks)
        rate = max(group["lr"] for group in optimizer.param_groups)
        counted = sum(one.tokens for one in batches), sum(one.distinct for one in batches), distinct(batches)
        try:
            torch.manual_seed(found.seed)
            optimizer.step(found.take)  # type: ignore[arg-type]  # torch types it float, every optimizer passes the tensor on
        except NotFinite as error:
            if not skips:
                raise
            skips -= 1
            yield Step(number, math.nan, {}, float(found.norm), rate, *counted, str(error))
            continue
        stats = found.means()
        yield Step(number, stats.pop("loss"), stats, float(found.norm), rate, *counted)


class Sums:
    """What the passes of one step come to."""

    def __init__(
        self, loaded: Loaded, objective: Objective, optimizer: torch.optim.Optimizer, batches: list[Batch], seed: int, clip: float,
        ranks: Ranks,
    ) -> None:  # fmt: skip
        self.loaded, self.objective, self.optimizer, self.batches = loaded, objective, optimizer, batches
        self.seed, self.clip, self.ranks = seed, clip, ranks
        self.count = sum(objective.count(batch) for batch in batches)
        self.sums: Counter[str] = Counter()
        self.calls = 0
        self.norm = torch.zeros(())

    def take(self) -> Tensor:
        """The mean loss, and in `.grad` its gradient where gradients are wanted: what an optimizer calls its closure."""
        self.optimizer.zero_grad()
        own, found = Counter[str](), Counter[str]()
        for place, batch in self.ranks.share(self.batches):
            torch.manual_seed(self.seed + (place << 40))
            own.update(self._pass(batch))
        for each in self.ranks.gathered(dict(own)):
            found.update(each)
        if torch.is_grad_enabled():
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            self.ranks.add_up(parameters)
            self.norm = nn.utils.clip_grad_norm_(parameters, self.clip if self.clip > 0 else float("inf"))
        _refuse_non_finite(found["loss"], self.norm, self.batches)
        self._note(found)
        return torch.tensor(found["loss"] / self.count)

    def _note(self, found: Counter[str]) -> None:
        """What is told of the step: of the weights as they are where there is a gradient, else of all that were tried beside them."""
        if torch.is_grad_enabled():
            self.sums.clear()
            self.calls = 0
        self.sums.update(found)
        self.calls += 1

    def _pass(self, batch: Batch) -> dict[str, float]:
        """Forward and, unless a zeroth-order optimizer calls, backward through some of the step's rows; sums of what is counted."""
        total, stats = self.objective(self.loaded, batch)
        if self.loaded.penalty is not None:
            penalty = self.loaded.penalty() * self.objective.count(batch)
            total, stats = total + penalty, {**stats, "penalty": penalty.detach()}
        if torch.is_grad_enabled():
            (total / self.count).backward()  # type: ignore[no-untyped-call]
        return {"loss": float(total.detach()), **{name: float(value) for name, value in stats.items()}}

    def means(self) -> dict[str, float]:
        """Of the loss and of what else the objective tells."""
        return {name: value / (self.count * self.calls) for name, value in self.sums.items()}


def _refuse_non_finite(loss: float, norm: Tensor, batches: list[Batch]) -> None:
    """Raise before the step is applied, naming the rows."""
    if math.isfinite(loss) and torch.isfinite(norm):
        return
    rows = [origin for batch in batches for origin in batch.origins]
    what = "gradient" if math.isfinite(loss) else "loss"
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    raise NotFinite(
        f"the {what} is not finite, the step was not applied; its rows: {shown}; lower the learning rate or look at these rows"
    )
