"""The training loop. There is one."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.methods.objectives import Objective
from tunesmith.models.load import Loaded


class NotFinite(ModelError):
    """The loss or a gradient of a step is not finite, so the step was not applied."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    number: int
    """Counted from 0."""
    loss: float
    """Mean over what the objective counts; of a step that was left out, nan."""
    stats: dict[str, float]
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens of the rows as given."""
    distinct: int
    """Tokens that were computed: a prefix common to rows of a micro-batch counts once."""
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
) -> Iterator[Step]:
    """Fit a model to an objective and yield after every optimizer step.

    What happens between steps (logging, evaluating, saving, stopping early) is plain code in the caller's `for`. Random draws of a
    step depend on (seed, step) alone, so a run that goes on from step n is the run that was never stopped.

    Raises:
        NotFinite: the loss or a gradient is not, and so many steps were left out for that already as `skips` allows; the weights are
            those of the step before.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    peaks = [group["lr"] for group in optimizer.param_groups]
    for number, batches in enumerate(steps, start=first):
        loaded.model.train()  # each time: whoever evaluates between steps may have turned it off
        count = sum(objective.count(batch) for batch in batches)
        sums: Counter[str] = Counter()
        norm = torch.zeros(())

        def closure(batches: list[Batch] = batches, count: int = count, sums: Counter[str] = sums) -> Tensor:
            nonlocal norm
            optimizer.zero_grad()
            sums.clear()
            for batch in batches:
                total, stats = objective(loaded, batch)
                if loaded.penalty is not None:
                    penalty = loaded.penalty() * objective.count(batch)
                    total, stats = total + penalty, {**stats, "penalty": penalty.detach()}
                if torch.is_grad_enabled():  # a zeroth-order optimizer calls without
                    (total / count).backward()  # type: ignore[no-untyped-call]
                sums.update({"loss": float(total.detach()), **{name: float(value) for name, value in stats.items()}})
            if torch.is_grad_enabled():
                norm = nn.utils.clip_grad_norm_(parameters, clip if clip > 0 else float("inf"))
            _refuse_non_finite(sums["loss"], norm, batches)
            return torch.tensor(sums["loss"] / count)

        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor(number)
        torch.manual_seed(seed * 1_000_003 + number)
        rate = max(group["lr"] for group in optimizer.param_groups)
        tokens, distinct = (
            sum(counts) for counts in zip(*((each.tokens, each.distinct) for each in batches), strict=True)
        )
        try:
            optimizer.step(closure)  # type: ignore[arg-type]  # torch types it float, every optimizer passes the tensor on
        except NotFinite as error:
            if not skips:
                raise
            skips -= 1
            yield Step(number, math.nan, {}, float(norm), rate, tokens, distinct, str(error))
            continue
        stats = {name: value / count for name, value in sums.items()}
        yield Step(number, stats.pop("loss"), stats, float(norm), rate, tokens, distinct)


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
