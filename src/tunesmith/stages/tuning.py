"""One training: its steps with validation, early stopping, and checkpoints from which a killed one goes on to the same bits."""

import shutil
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, cast

from tunesmith.base import ArtifactError, ConfigError, MachineError, Output, ProofError
from tunesmith.base.files import room, sha256
from tunesmith.base.signals import deferred
from tunesmith.kernels.memory import Peak, give_back
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.optimizers.hybrid import TorchHybrid
from tunesmith.methods.optimizers.moves import Moving
from tunesmith.models.heads import detach_head, save_head
from tunesmith.models.load import Loaded, Precision, load
from tunesmith.training import checkpoint
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import Step, train
from tunesmith.training.ranks import ALONE, Ranks, digest_of

from .validation import Judge, Watch

if TYPE_CHECKING:
    from .finetune import Finetune


class Training:
    """One training with everything it needs at hand."""

    def __init__(
        self,
        spec: "Finetune",
        loaded: Loaded,
        data: Dataset,
        judge: Judge,
        out: Output,
        ranks: Ranks = ALONE,
        *,
        name: str,
    ):
        self.spec, self.loaded, self.data, self.judge, self.out, self.ranks = spec, loaded, data, judge, out, ranks
        self.name = name
        """Of checkpoints: they serve no other training."""
        self.parameters = trainable(loaded.model)
        frozen = {name: one for name, one in loaded.model.named_parameters() if name not in self.parameters}
        self.optimizer = spec.optimizer.over(self.parameters, frozen)
        self.watch, self.peak, self.saved, self.until = Watch(), Peak(), 0, data.steps
        every = spec.validation.every
        self.every = every if isinstance(every, int) else max(1, round(every * data.steps_per_epoch))

    def resume(self) -> int:
        """Steps already done; weights, optimizer and watch are put back as they were then."""
        found = self._newest("checkpoints")
        forgotten = self._forget_best(found.step if found else 0)
        if found is None:
            return 0
        checkpoint.restore(found, self.parameters, self.optimizer)
        pairs = ("history", "scored")
        notes = {**found.notes, **{name: [tuple(pair) for pair in found.notes.get(name, [])] for name in pairs}}
        self.watch = Watch(**notes)
        kept = self._newest("best") if self.watch.best_step else None
        if self.watch.best_step and (kept is None or kept.step != self.watch.best_step):
            if forgotten < checkpoint.KEEP:  # else better ones took its place, and went with their steps
                lost = self.out / "best" / checkpoint.called(self.watch.best_step)
                self.out.events.write("damaged", reason=f"{lost}: is not there, or not whole; the best is chosen anew")
            self.watch.best, self.watch.best_step = None, 0
        self.out.events.write("resumed", step=found.step)
        self.saved = found.step
        return found.step

    def _forget_best(self, done: int) -> int:
        """Leave out what was best in steps that will be done anew: on other processors, or more of them, something else may be. How many those were."""
        later = [path for path in (self.out / "best").glob("step-*") if path.name > checkpoint.called(done)]
        for path in later if self.ranks.first else ():
            shutil.rmtree(path)
        return len(later)

    def _newest(self, kind: str) -> checkpoint.Checkpoint | None:
        return checkpoint.load_newest(
            self.out / kind, lambda reason: self.out.events.write("damaged", reason=reason), self.name
        )

    def save(self, step: int, kind: str = "checkpoints") -> None:
        """Commit a checkpoint of `step` steps done; memory that steps of other lengths left in pieces goes back to the system."""
        self.optimizer.zero_grad()
        give_back()  # what follows reads all weights and moments
        checkpoint.save(self.out / kind, step, self.parameters, self.optimizer, vars(self.watch), self.name)
        give_back()

    def validate(self, step: int) -> None:
        """Judge, and keep the weights if they are the best so far."""
        found = self.judge.look(self.loaded)
        best = self.watch.take(step, found)
        self.out.events.write("validation", step=step, metric=found.metric, value=found.value, best=best)
        if best:
            self.save(step, "best")

    def score(self, step: int) -> None:
        """Note what the weights are worth now. Nothing else changes: a training that was scored on its way ends with the same bits."""
        judged = dict(self.watch.history).get(step)
        value = self.judge.look(self.loaded).value if judged is None else judged
        self.watch.scored.append((step, value))
        self.out.events.write("scored", step=step, metric=self.judge.metric, value=value)

    def run(self, until: int | None = None, scored: Collection[int] = ()) -> int:
        """Train to the end or to an early stop; the number of steps done.

        Args:
            until: steps after which to pause, saved; it can be resumed to the bits of a training that did not pause.
            scored: steps after which to look at the validation rows besides.

        Raises:
            Interrupted: a signal arrived; the step under way was finished and saved.
            ModelError: something is not finite; the last checkpoint is.
        """
        first, self.until = self.resume(), until or self.data.steps
        done, last_time = first, time.monotonic()
        if self.ranks.told(self._over(done)):
            return done
        with deferred() as stop:
            self.ranks.told(first)
            for step in self._steps(first):
                done = step.number + 1
                self._note(step, time.monotonic() - last_time)
                last = done == self.data.steps or (self.data.settled(done) and self._spent())
                if self.judge.rows and (last or done % self.every == 0):
                    self.validate(done)
                if done in scored:
                    self.score(done)
                over = self.data.settled(done) and (self._over(done) or stop.signal is not None)
                if over or (self.data.settled(done) and done - self.saved >= self.spec.checkpoint_every):
                    self.save(done)
                    self.saved = done
                if self.ranks.told(over):
                    break
                last_time = time.monotonic()
            self._agreed()
        return done

    def take_part(self) -> None:
        """As `run`, in a process that is not the first: its share of every step, until the first says that it is over.

        Raises:
            MachineError: the first is gone, or went on from a checkpoint that is not to be seen here.
        """
        if self.ranks.told():
            return
        first = self.ranks.told()
        if self.resume() != first:
            raise MachineError(
                f"{self.out.path}: process {self.ranks.rank} does not see the checkpoint of step {first}; give all processes one folder"
            )
        for _ in self._steps(first):
            if self.ranks.told():
                break
        self._agreed()

    def _steps(self, first: int) -> Iterator[Step]:
        """Train from a step on."""
        factor = lambda step: self.spec.schedule.factor(step, self.data.steps)  # noqa: E731
        return train(
            self.loaded, self.spec.objective, self.data.from_step(first), self.optimizer, factor, seed=self.data.seed, first=first,
            clip=self.spec.clip, skips=max(0, self.spec.skip_not_finite - self.watch.skipped), ranks=self.ranks,
        )  # fmt: skip

    def _agreed(self) -> None:
        """Make sure that all processes hold the same weights, to the bit.

        Raises:
            ProofError: they do not.
        """
        if self.ranks.count > 1 and len(found := set(self.ranks.gathered(digest_of(self.parameters.values())))) > 1:
            raise ProofError(
                f"{len(found)} of {self.ranks.count} processes ended with weights of their own; run all on processors of one kind, or in one process"
            )

    def _over(self, done: int) -> bool:
        patience = self.spec.validation.patience
        waited = bool(patience and self.watch.waited >= patience)
        return waited or self._spent() or done >= min(self.until, self.data.steps)

    def _spent(self) -> bool:
        return self.spec.most_tokens is not None and self.watch.tokens >= self.spec.most_tokens

    def _note(self, step: Step, seconds: float) -> None:
        if step.skipped:
            self.watch.skipped += 1
            self.out.events.write("skipped", step=step.number + 1, reason=step.skipped)
            return
        self.watch.tokens += step.learnt
        self.out.events.write(
            "step", step=step.number + 1, steps=self.data.steps, loss=step.loss, gradient_norm=step.gradient_norm,
            learning_rate=step.learning_rate, tokens=step.tokens, distinct=step.distinct, learnt=step.learnt, seconds=round(seconds, 4),
            **step.stats, **self.data.facts,
        )  # fmt: skip

    def keep_best(self) -> None:
        """Put the best weights back, if validation chose some."""
        if self.watch.best_step:
            found = self._newest("best")
            if found is None or found.step != self.watch.best_step:
                raise ArtifactError(
                    f"{self.out / 'best'}: the best checkpoint (step {self.watch.best_step}) is missing or damaged; delete {self.out.path} and run again"
                )
            if isinstance(self.optimizer, TorchHybrid):
                self.optimizer.reset(load(self.loaded.name, cast(Precision, self.loaded.precision)).model.parameters())
            checkpoint.restore(found, self.parameters, self.optimizer)

    def keep(self, adapter: Adapter) -> None:
        """Write what was learnt."""
        shutil.rmtree(self.out / "adapter", ignore_errors=True)
        head = detach_head(self.loaded) if self.spec.objective.head else None
        with room(self.out / "adapter", sum(parameter.nbytes for parameter in self.parameters.values())):
            adapter.save(self.loaded, self.out / "adapter")
        if head is not None:
            save_head(head, self.out / "adapter")
        if isinstance(self.optimizer, Moving):
            self.optimizer.save(self.out / "adapter")


def divided(spec: "Finetune", ranks: Ranks) -> "Finetune":
    """With passes so small that each process has one of every step.

    Raises:
        ConfigError: the rows of a step must pass together, or are answers that one process samples.
    """
    if ranks.count == 1:
        return spec
    if spec.objective.whole or spec.rollouts is not None:
        why = "samples answers" if spec.rollouts else "compares the rows of a step with each other"
        raise ConfigError(
            f"finetune.objective: {spec.objective.kind} {why}, which one process does; start it without torchrun"
        )
    rows = -(-spec.batch // ranks.count)
    return spec.model_copy(update={"micro_batch": min(spec.micro_batch or rows, rows)})


def figures(training: Training, done: int, out: Output) -> dict[str, Any]:
    """What the run cost and came to; speeds are medians over steps."""
    steps = list({event["step"]: event for event in out.events.read("step")}.values())  # a resumed run repeats some
    speeds = sorted(event["tokens"] / event["seconds"] for event in steps)
    return {
        "steps": done,
        "planned_steps": training.data.steps,
        "skipped_steps": training.watch.skipped,
        "processes": training.ranks.count,
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
