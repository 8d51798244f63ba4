"""Finetune: the loop over the prepared rows, with validation, early stopping and checkpoints that lose nothing."""

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator

from tunesmith.base import Artifact, ConfigError, DataError, Output, Spec, Stage
from tunesmith.base.files import sha256
from tunesmith.base.proof import Proof
from tunesmith.base.signals import deferred
from tunesmith.data.example import Example, Row
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.kernels.memory import Peak, give_back
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers import Optimizer
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.methods.optimizers.hybrid import TorchHybrid
from tunesmith.models.heads import attach_head, detach_head, save_head
from tunesmith.models.load import Loaded, Precision, load, served
from tunesmith.training import checkpoint
from tunesmith.training.balance import Balance
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import Step, train
from tunesmith.training.others import Others, Split, of_start
from tunesmith.training.reference import Back, Start
from tunesmith.training.rollouts import OnPolicy, Rollouts, Sampled, imagined
from tunesmith.training.schedule import Schedule

from .initialise import gap, last_logits
from .validation import Judge, Validation, Watch


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
    balance: Balance = Balance()
    """What is done about rare classes."""
    batch: int = Field(8, ge=1)
    """Rows of an optimizer step."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows of one forward and backward pass; fewer need less memory and give the same result. Null takes the whole batch."""
    share_prefixes: bool = True
    """Compute what the rows of a pass have in common from their start, such as a system prompt, once; the result is the same."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Keep only what goes into each layer and compute the rest again in the backward pass: a fraction of the memory, a third more time, the same result.
    Auto turns it on where memory would not suffice otherwise; the run's resolved.yaml says what it came to."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; longer ones are scaled down. 0 turns it off."""
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
            example = "{rewards: [{grader: {kind: json_fields}}]}"
            raise ValueError(
                f"objective {kind} learns from the model's own answers: say what they earn, e.g. rollouts: {example}"
            )
        if self.rollouts is not None and not self.objective.rollouts:
            raise ValueError(
                f"objective {kind} learns from given answers; leave rollouts out, or take objective.kind grpo"
            )
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
        if self.objective.whole and self.micro_batch not in (None, self.batch):
            raise ValueError(f"objective {kind} compares the rows of a step with each other: leave micro_batch out")
        if self.objective.rollouts and self.validation.metric == "loss":
            raise ValueError(f"validation.metric: the loss of {kind} says nothing about answers; take auto or a grader")
        if self.objective.scores and self.validation.metric not in ("auto", "loss"):
            raise ValueError(
                f"validation.metric: objective {kind} leaves a model that scores answers and writes none; take auto or loss"
            )
        return self

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


class Training:
    """One training with everything it needs at hand."""

    def __init__(self, spec: Finetune, loaded: Loaded, data: Dataset, judge: Judge, out: Output):
        self.spec, self.loaded, self.data, self.judge, self.out = spec, loaded, data, judge, out
        self.parameters = trainable(loaded.model)
        frozen = {name: one for name, one in loaded.model.named_parameters() if name not in self.parameters}
        self.optimizer = spec.optimizer.over(self.parameters, frozen)
        self.watch, self.peak, self.saved = Watch(), Peak(), 0
        every = spec.validation.every
        self.every = every if isinstance(every, int) else max(1, round(every * data.steps_per_epoch))

    def resume(self) -> int:
        """Steps already done; weights, optimizer and watch are put back as they were then."""
        found = checkpoint.load_newest(
            self.out / "checkpoints", lambda reason: self.out.events.write("damaged", reason=reason)
        )
        if found is None:
            return 0
        checkpoint.restore(found, self.parameters, self.optimizer)
        notes = {**found.notes, "history": [tuple(pair) for pair in found.notes["history"]]}
        self.watch = Watch(**notes)
        self.out.events.write("resumed", step=found.step)
        self.saved = found.step
        return found.step

    def save(self, step: int, kind: str = "checkpoints") -> None:
        """Commit a checkpoint of `step` steps done; memory that steps of other lengths left in pieces goes back to the system."""
        self.optimizer.zero_grad()
        give_back()  # what follows reads all weights and moments
        checkpoint.save(self.out / kind, step, self.parameters, self.optimizer, vars(self.watch))
        give_back()

    def validate(self, step: int) -> None:
        """Judge, and keep the weights if they are the best so far."""
        found = self.judge.look(self.loaded)
        best = self.watch.take(step, found)
        self.out.events.write("validation", step=step, metric=found.metric, value=found.value, best=best)
        if best:
            self.save(step, "best")

    def run(self) -> int:
        """Train to the end or to an early stop; the number of steps done.

        Raises:
            Interrupted: a signal arrived; the step under way was finished and saved.
        """
        first = self.resume()
        factor = lambda step: self.spec.schedule.factor(step, self.data.steps)  # noqa: E731
        done, last_time = first, time.monotonic()
        if self._over(done):
            return done
        with deferred() as stop:
            steps = train(
                self.loaded, self.spec.objective, self.data.from_step(first), self.optimizer, factor,
                seed=self.data.seed, first=first, clip=self.spec.clip,
            )  # fmt: skip
            for step in steps:
                done = step.number + 1
                self._note(step, time.monotonic() - last_time)
                if self.judge.rows and (done % self.every == 0 or done == self.data.steps):
                    self.validate(done)
                if self.data.settled(done):
                    over = self._over(done)
                    if over or stop.signal or done - self.saved >= self.spec.checkpoint_every:
                        self.save(done)
                        self.saved = done
                    stop.check()
                    if over:
                        break
                last_time = time.monotonic()
        return done

    def _over(self, done: int) -> bool:
        patience = self.spec.validation.patience
        return done >= self.data.steps or bool(patience and self.watch.waited >= patience)

    def _note(self, step: Step, seconds: float) -> None:
        self.out.events.write(
            "step", step=step.number + 1, steps=self.data.steps, loss=step.loss, gradient_norm=step.gradient_norm,
            learning_rate=step.learning_rate, tokens=step.tokens, distinct=step.distinct, seconds=round(seconds, 4),
            **step.stats, **self.data.facts,
        )  # fmt: skip

    def keep_best(self) -> None:
        """Put the best weights back, if validation chose some."""
        if self.watch.best_step:
            found = checkpoint.load_newest(
                self.out / "best", lambda reason: self.out.events.write("damaged", reason=reason)
            )
            if found is None or found.step != self.watch.best_step:
                raise ConfigError(
                    f"{self.out / 'best'}: the best checkpoint (step {self.watch.best_step}) is damaged; delete {self.out.path} and run again"
                )
            if isinstance(self.optimizer, TorchHybrid):
                self.optimizer.reset(load(self.loaded.name, cast(Precision, self.loaded.precision)).model.parameters())
            checkpoint.restore(found, self.parameters, self.optimizer)

    def keep(self, adapter: Adapter) -> None:
        """Write what was learnt."""
        shutil.rmtree(self.out / "adapter", ignore_errors=True)
        head = detach_head(self.loaded) if self.spec.objective.head else None
        adapter.save(self.loaded, self.out / "adapter")
        if head is not None:
            save_head(head, self.out / "adapter")
        if isinstance(self.optimizer, TorchHybrid):
            self.optimizer.save(self.out / "adapter")


def finetune(
    spec: Finetune, prepared: Artifact, initialised: Artifact, searched: Artifact, *, out: Output, model: str, precision: Precision,
    adapter: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    """Write what was learnt to `adapter/` (peft's format, or a whole model) with the proof.

    Raises:
        Interrupted: SIGINT or SIGTERM; the next call goes on from the step it arrived in.
        DataError: the rows are not what the objective learns from.
        ModelError: the loss is not finite.
    """
    del searched  # its overrides are part of `spec` already
    learnt, held_out = splits(spec, prepared, model, precision)
    loaded = load(model, precision)
    loaded.checkpointing = spec.activation_checkpointing is True
    chosen: Adapter = Adapter.member(adapter["kind"]).model_validate(adapter)
    if spec.optimizer.moves_frozen:
        loaded.model.float()
    chosen.attach(loaded, seed)
    chosen.begin(loaded, list(learnt.rows), seed)
    if spec.objective.head:
        attach_head(loaded)
    before = last_logits(loaded, list(learnt.rows))
    training = set_up(spec, loaded, chosen, learnt, held_out, out, seed)
    done = training.run()
    training.keep_best()
    proof = Proof()
    moved = gap(before, last_logits(loaded, list(learnt.rows)))
    proof.claim("training changed the logits", moved > 1e-3, largest_logp_change=moved)
    finite = all(bool(parameter.isfinite().all()) for parameter in training.parameters.values())
    proof.claim("every learnt weight is finite", finite, tensors=len(training.parameters))
    training.keep(chosen)
    proof.write(out / "proof.json")
    for folder in ("checkpoints", "best"):
        shutil.rmtree(out / folder, ignore_errors=True)
    out.metrics.update(figures(training, done, out))


def splits(spec: Finetune, prepared: Artifact, model: str, precision: Precision) -> list[Split]:
    """What is learnt from and what validation looks at, as the objective reads it, with what other models say of it.

    Raises:
        DataError: the objective cannot learn from a row.
        ModelError: another model cannot be had.
    """
    train, held_out = (load_split(prepared.path, name) for name in ("train", "validation"))
    spec.objective.check([*train, *held_out])
    rows, first = spec.balance.weighted(train), slice(spec.validation.rows)
    found = [
        Split(list(spec.objective.arranged(rows)), load_examples(prepared.path, "train")),
        Split(list(spec.objective.arranged(held_out))[first], load_examples(prepared.path, "validation")[first]),
    ]
    size, supervise = spec.micro_batch or spec.batch, prepared.manifest["spec"]["supervise"]
    asked = Others(model, served(precision), size, supervise).asked(spec.objective, found)
    return [replace(split, rows=rows) for split, rows in zip(found, asked, strict=True)]


def set_up(
    spec: Finetune, loaded: Loaded, adapter: Adapter, learnt: Split, held_out: Split, out: Output, seed: int
) -> Training:
    """A training of what learns in a model, from its first step on or from where an earlier attempt was stopped.

    It is held to the base where the adapter, just attached, would answer otherwise: with a prompt of random tokens, say.
    """
    back = None if adapter.neutral else partial(adapter.disabled, loaded)
    size = spec.micro_batch or spec.batch
    rows, watched = list(learnt.rows), list(held_out.rows)
    if spec.rollouts is None:
        with nullcontext() if back is None else back():
            rows, watched = (of_start(loaded, spec.objective, each, size) for each in (rows, watched))
    data = spec.source(loaded, rows, learnt.examples, seed, back)
    judge = Judge(spec.validation, spec.objective, spec.rollouts, held_out.examples, watched, size)
    if any(row.classes for row in rows):
        out.metrics["classes"] = spec.balance.table(rows)
        out.events.write("classes", classes=out.metrics["classes"])
    return Training(spec, loaded, data, judge, out)


def figures(training: Training, done: int, out: Output) -> dict[str, Any]:
    """What the run cost and came to; speeds are medians over steps."""
    steps = list({event["step"]: event for event in out.events.read("step")}.values())  # a resumed run repeats some
    speeds = sorted(event["tokens"] / event["seconds"] for event in steps)
    return {
        "steps": done,
        "planned_steps": training.data.steps,
        "rows": len(training.data.rows),
        "loss": steps[-1]["loss"] if steps else None,
        "best_step": training.watch.best_step or done,
        "best_value": training.watch.best,
        "tokens": sum(event["tokens"] for event in steps),
        "distinct_tokens": sum(event["distinct"] for event in steps),
        "tokens_per_second": round(speeds[len(speeds) // 2], 1) if speeds else None,
        "step_seconds": round(sum(event["seconds"] for event in steps), 1),
        "peak_memory_mb": training.peak.megabytes,
        "learnt_sha256": {path.name: sha256(path) for path in sorted((out / "adapter").glob("*.safetensors"))},
    }


STAGE = Stage("finetune", 1, finetune)
