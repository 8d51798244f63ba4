"""Finetune: the loop over the prepared rows, with validation, early stopping and checkpoints that lose nothing."""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.base import Artifact, DataError, Events, Output, Spec, Stage
from tunesmith.base.files import read_json
from tunesmith.base.proof import Proof
from tunesmith.data.example import Example, Row
from tunesmith.data.prepared import rendered_on
from tunesmith.data.subset import subset
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers import Optimizer
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.heads import attach_head
from tunesmith.models.load import Loaded, Precision, load
from tunesmith.training.balance import Balance
from tunesmith.training.batches import Dataset
from tunesmith.training.checkpoint import training_of
from tunesmith.training.others import Split, of_start
from tunesmith.training.ranks import ALONE, Ranks
from tunesmith.training.reference import Back, Start
from tunesmith.training.rollouts import OnPolicy, Rollouts, Sampled, imagined
from tunesmith.training.schedule import Schedule

from .initialise import gap, last_logits
from .reach import check_reach
from .splits import splits
from .tuning import Training, divided, figures
from .validation import Judge, Validation

WINNER = "winner"
"""Where, in a search's artifact, what its best trial learnt is."""
WITHOUT_EFFECT = {"micro_batch", "share_prefixes", "activation_checkpointing", "checkpoint_every"}
"""Settings of how a training is computed, not of what it comes to, but for the draws of dropout and noise."""
LOOKED_AT = 2
"""Rows whose log-probabilities tell whether training changed anything: a pass over more would hold up the first step."""


class Finetune(Spec):
    """What is minimised, how weights move, and for how long."""

    objective: Objective = SFT()
    """What is minimised."""
    optimizer: Optimizer = AdamW()
    """How the weights move."""
    schedule: Schedule = Schedule()
    """How the learning rate changes."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows."""
    most_tokens: int | None = Field(None, ge=1)
    """Training ends when so many tokens were learnt from, though `epochs` are not over; what rows of a step share counts once."""
    rows: int | None = Field(None, ge=1)
    """Learn from so many of the prepared rows, each of `prepare.classes` in proportion; what a smaller number takes, a larger one takes too. Null takes all."""
    balance: Balance = Balance()
    """What is done about rare classes."""
    batch: int = Field(8, ge=1)
    """Rows of an optimizer step."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows of one forward and backward pass; fewer need less memory and give the same result without dropout or noise, which are drawn for each pass. Null takes
    the whole batch."""
    share_prefixes: bool = True
    """Compute what the rows of a pass have in common from their start, such as a system prompt, once; the result is the same without dropout or noise, which draw
    once for what is computed once."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Keep only what goes into each layer and compute the rest again in the backward pass: the same result, with LoRA on SmolLM2-135M in a fifth less memory
    and half as much time again (all weights: an eighth less, a third more). Auto turns it on where memory would not suffice otherwise; the run's resolved.yaml says what it came to."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; longer ones are scaled down. 0 turns it off."""
    skip_not_finite: int = Field(0, ge=0)
    """Steps that may be left out because their loss or gradient is not finite; the run counts them and names their rows. 0 stops at the first."""
    rollouts: Rollouts | None = None
    """How the model's own answers are sampled and paid, for objectives that learn from them."""
    validation: Validation = Validation()
    """What the best checkpoint is chosen by."""
    checkpoint_every: int = Field(25, ge=1)
    """Steps between checkpoints: what a crash costs at most."""

    @model_validator(mode="after")
    def _rollouts_fit(self) -> Self:
        kind = self.objective.kind
        if self.objective.rollouts and self.rollouts is None:
            raise ValueError(
                f"objective {kind} learns from the model's own answers: say what they earn (rollouts.rewards)"
            )
        if self.rollouts is not None and not self.objective.rollouts:
            raise ValueError(f"objective {kind} learns from given answers; leave rollouts out, or take grpo")
        if self.rollouts is not None and self.rollouts.samples < self.objective.group:
            raise ValueError(
                f"objective {kind} compares answers to a prompt with each other: set rollouts.samples to {self.objective.group} or more"
            )
        if self.objective.rollouts and (self.optimizer.moves_frozen or not self.optimizer.gradients):
            raise ValueError(
                f"objective {kind} has a gradient where its answers were sampled, but no slope that two passes could see; take optimizer.kind adamw"
            )
        if self.balance.weight and not self.objective.weighs:
            raise ValueError(
                f"balance.weight: objective {kind} does not weigh rows; take objective.kind sft, or draw rare classes more often by balance.power"
            )
        if self.most_tokens and not self.schedule.endless:
            raise ValueError(
                "most_tokens: rates must not depend on how many steps they make: take {shape: constant, warmup: 5}"
            )
        if self.objective.whole and self.micro_batch not in (None, self.batch):
            raise ValueError(f"objective {kind} compares the rows of a step with each other: leave micro_batch out")
        if self.objective.rollouts and self.validation.metric == "loss":
            raise ValueError(f"validation.metric: the loss of {kind} says nothing about answers; take auto or a grader")
        if self.objective.scores and self.validation.metric not in ("auto", "loss"):
            raise ValueError(
                f"validation.metric: objective {kind} leaves a model that scores answers and writes none; take auto or loss"
            )
        return self

    def places(self, rows: Sequence[Row], seed: int) -> list[int]:
        """Places of the prepared training rows that are learnt from.

        Raises:
            DataError: there are not so many.
        """
        if self.rows is None:
            return list(range(len(rows)))
        if self.rows > len(rows):
            raise DataError(
                f"finetune.rows: {self.rows:,} are wanted and there are {len(rows):,} to learn from; take fewer, or prepare more"
            )
        return subset(rows, self.rows, seed)

    def dataset(self, rows: Sequence[Row], seed: int) -> Dataset:
        """Rows in the batches that these settings make of them; answers yet to be sampled are as long as they may be."""
        parts, draw = (*self._cut(), self.epochs, seed, self.share_prefixes), self.balance.draw(rows)
        if self.rollouts is not None:
            return Sampled(imagined(rows, self.rollouts), *parts, spec=self.rollouts, draw=draw)
        return Dataset(rows, *parts, draw=draw)

    def source(
        self, loaded: Loaded, rows: Sequence[Row], examples: Sequence[Example], seed: int, back: Back | None = None
    ) -> Dataset:
        """Where the batches of a training come from; `back` makes the model what it is held to, if not what it begins as.

        Raises:
            DataError: answers are to be sampled, and a row is plain text, which asks nothing.
        """
        if self.rollouts is None:
            return self.dataset(rows, seed)
        if text := next((example for example in examples if example.text is not None), None):
            raise DataError(
                f"{text.origin}: plain text has no prompt to answer; objective {self.objective.kind} needs rows of prompt and answer"
            )
        start = (back or Start(trainable(loaded.model)).back) if self.objective.references else None
        return OnPolicy(
            rows, *self._cut(), self.epochs, seed, self.share_prefixes, spec=self.rollouts, loaded=loaded, examples=examples,
            start=start, objective=self.objective, draw=self.balance.draw(rows),
        )  # fmt: skip

    def _cut(self) -> tuple[int, int]:
        """Rows of a step and of a pass."""
        return self.batch, self.micro_batch or self.batch


def finetune(
    spec: Finetune, prepared: Artifact, initialised: Artifact, searched: Artifact, *, out: Output, model: str, precision: Precision,
    adapter: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    """Write what was learnt to `adapter/` (peft's format, or a whole model) with the proof; a search that trained it already hands it on.

    Raises:
        Interrupted: SIGINT or SIGTERM; the next call goes on from the step it arrived in.
        DataError: the rows are not what the objective learns from.
        ModelError: a loss, a gradient or a weight is not finite.
    """
    if (searched / WINNER).exists():  # its settings are `spec`, and the steps were these
        take_over(searched / WINNER, out)
        return
    ranks = Ranks.present()
    spec, context = divided(spec, ranks), {"model": model, "precision": precision, "adapter": adapter, "seed": seed}
    folders = {"prepared": str(prepared.path.resolve()), "out": str(out.path.resolve())}
    ranks.told({"spec": spec.model_dump(mode="json"), **folders, **context})
    begun = begin(spec, prepared, out, model, precision, adapter, seed, ranks)
    done = begun.training.run()
    conclude(begun, out)
    out.metrics.update(figures(begun.training, done, out))


def take_over(winner: Path, out: Output) -> None:
    """What a search's best trial learnt, its proof, figures and events become those of this artifact."""
    shutil.copytree(winner / "adapter", out / "adapter", dirs_exist_ok=True)
    shutil.copy(winner / "proof.json", out / "proof.json")
    for event in Events(winner / "events.jsonl").read():
        out.events.write(event.pop("event"), **{**event, **out.events.tags})
    out.metrics.update(read_json(winner / "metrics.json"))


@dataclass(frozen=True)
class Begun:
    """A training that is set up, and what it takes to conclude it."""

    training: Training
    adapter: Adapter
    rows: list[Row]
    """A few that it learns from."""
    before: Tensor
    """Their log-probabilities before the first step."""


def begin(
    spec: Finetune, prepared: Artifact, out: Output, model: str, precision: Precision, adapter: dict[str, Any], seed: int,
    ranks: Ranks = ALONE,
) -> Begun:  # fmt: skip
    """Load the model, attach what learns, and set up its training.

    Raises:
        ConfigError: settings leave too few of the model's positions for rows or answers.
        DataError: the rows are not what the objective learns from, or do not fit into the model's context.
        ModelError: the model has nothing that the adapter could teach.
    """
    chosen: Adapter = Adapter.member(adapter["kind"]).model_validate(adapter)
    check_reach(spec, chosen, prepared, model)
    learnt, held_out = splits(spec, prepared, model, precision, seed)
    loaded = load(model, precision, today=rendered_on(prepared.path))
    loaded.checkpointing = spec.activation_checkpointing is True
    if spec.optimizer.moves_frozen:
        loaded.model.float()
    chosen.attach(loaded, seed)
    chosen.begin(loaded, list(learnt.rows), seed)
    if spec.objective.head:
        attach_head(loaded)
    rows = list(learnt.rows[:LOOKED_AT])
    before = last_logits(loaded, rows)
    return Begun(set_up(spec, loaded, chosen, learnt, held_out, out, seed, ranks), chosen, rows, before)


def conclude(begun: Begun, out: Output) -> None:
    """Keep the best weights of a training that has ended, prove that they are sound, and let its checkpoints go.

    Raises:
        ProofError: nothing was learnt, or what was is not finite.
    """
    training = begun.training
    training.keep_best()
    proof = Proof()
    moved = gap(begun.before, last_logits(training.loaded, begun.rows))
    proof.claim("training changed the logits", moved > 1e-3, largest_logp_change=moved)
    finite = all(bool(parameter.isfinite().all()) for parameter in training.parameters.values())
    proof.claim("every learnt weight is finite", finite, tensors=len(training.parameters))
    training.keep(begun.adapter)
    proof.write(out / "proof.json")
    out.scratch = ("checkpoints", "best")


def set_up(
    spec: Finetune, loaded: Loaded, adapter: Adapter, learnt: Split, held_out: Split, out: Output, seed: int,
    ranks: Ranks = ALONE,
) -> Training:  # fmt: skip
    """A training of what learns in a model, from its first step on or from where an earlier attempt was stopped.

    It is held to the base where the adapter, just attached, would answer otherwise: with a prompt of random tokens, say.
    """
    back = None if adapter.neutral else partial(adapter.disabled, loaded)
    size, rows, watched = spec.micro_batch or spec.batch, list(learnt.rows), list(held_out.rows)
    if spec.rollouts is None:
        with nullcontext() if back is None else back():
            rows, watched = (of_start(loaded, spec.objective, each, size) for each in (rows, watched))
    data = spec.source(loaded, rows, learnt.examples, seed, back)
    judge = Judge(spec.validation, spec.objective, spec.rollouts, held_out.examples, watched, size)
    if any(row.classes for row in rows):
        out.metrics["classes"] = spec.balance.table(rows)
        out.events.write("classes", classes=out.metrics["classes"])
    return Training(spec, loaded, data, judge, out, ranks, name=_name(spec, loaded, adapter, learnt, out, seed))


def _name(spec: Finetune, loaded: Loaded, adapter: Adapter, learnt: Split, out: Output, seed: int) -> str:
    """What tells one training from another, wherever it is done and however many rows pass together."""
    settings = [spec.model_dump(mode="json", exclude=WITHOUT_EFFECT), adapter.model_dump(mode="json")]
    model = loaded.name.removeprefix(str(out.path))  # a pruned one is in the artifact that is being made
    return training_of([*settings, model, loaded.precision, seed], learnt.rows)


STAGE = Stage("finetune", 6, finetune)
