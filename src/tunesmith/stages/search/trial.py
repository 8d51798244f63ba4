"""A trial: one training with settings of its own, in a folder of its own, in parts that end where trials are told apart."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, ArtifactError, Events, ModelError, Output, Run, Stage
from tunesmith.base.files import sealed, write_sealed
from tunesmith.base.secrets import redacted
from tunesmith.models.load import Precision
from tunesmith.training.batches import Dataset
from tunesmith.training.schedule import Schedule

from ..finetune import Finetune, begin, conclude
from ..machine import available_memory, boot, killed_for_memory
from ..tuning import figures

FACTS, REFUSED, PLANNED = "trial.json", "refused.json", "plan.json"


@dataclass(frozen=True)
class Trial:
    """A folder, and what is in it; nothing else is known of a trial."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`number`, `settings`, who proposed them (`by`), and `known`: the scores by trial that they were proposed from.

        Raises:
            ArtifactError: the file is damaged.
        """
        return _told(self.folder / FACTS, {"number": int, "settings": dict, "by": str, "known": dict})

    @property
    def number(self) -> int:
        """Counted from 0, the recipe's own settings."""
        found: int = self.facts["number"]
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """What it tries, by dotted path."""
        found: dict[str, Any] = self.facts["settings"]
        return found

    @property
    def run(self) -> Run:
        """Where its parts are."""
        return Run(self.folder)

    @property
    def refused(self) -> dict[str, Any] | None:
        """`state`, infeasible or failed, and `reason`, if it came to nothing.

        Raises:
            ArtifactError: the file that says so is damaged.
        """
        path = self.folder / REFUSED
        return _told(path, {"state": str, "reason": str}) if path.exists() else None

    def refuse(self, state: str, reason: str) -> None:
        """Note that it comes to nothing, for good."""
        write_sealed(self.folder / REFUSED, {"state": state, "reason": redacted(reason)})

    @property
    def planned(self) -> dict[str, Any] | None:
        """Bytes `needed` and `available`, whether layers are computed again (`checkpointing`) and the `reason` why it would not fit, if any; None before it was planned.

        Raises:
            ArtifactError: the file that says so is damaged.
        """
        path = self.folder / PLANNED
        return _told(path, {"needed": int, "available": int, "checkpointing": bool}) if path.exists() else None

    def outgrown(self) -> None:
        """Note that memory ran out though it was planned to do: it needs more than was free then."""
        unplanned: dict[str, Any] = {
            "needed": 0,
            "available": available_memory(),
            "checkpointing": False,
            "reason": None,
        }
        planned = self.planned or unplanned  # it may have been planning that took too much
        more = max(planned["needed"], planned["available"] + 1)
        write_sealed(self.folder / PLANNED, {**planned, "needed": more})
        self.refuse("infeasible", "memory ran out though the plan found enough")

    def retried(self) -> None:
        """Forget that it would not fit, to be planned anew."""
        for name in (REFUSED, PLANNED):
            (self.folder / name).unlink(missing_ok=True)

    def taken_up(self) -> None:
        """Note that its training begins, or goes on."""
        self.run.events.write("taken_up", **_taken_up())

    def deaths(self) -> tuple[int, int]:
        """How often in a row its process ended without a word and got no further than before: in all, and while processes were killed for memory.

        Where the system does not say whether any was, all are counted as that; on another machine, none, since only the first could tell.
        """
        died, best, before = list[bool](), 0, None
        for event in [*self.run.events.read(), {"event": "taken_up", **_taken_up()}]:
            if event["event"] == "taken_up":
                if before is not None:
                    was, now = before["killed_for_memory"], event["killed_for_memory"]
                    died.append(before.get("boot") == event.get("boot") and (was is None or now is None or now > was))
                before = event
            elif event["event"] == "step" and event["step"] > best:
                died, best = [], event["step"]
            elif event["event"] in ("done", "interrupted", "failed"):
                died, before = [], None
        return len(died), sum(died)

    def metrics(self, until: float) -> dict[str, Any] | None:
        """What the part that ends there measured; None while it has not been trained so far."""
        found = self._manifest(until)
        return None if found is None else found["metrics"]

    def made(self, until: float) -> Path | None:
        """The folder of the part that ends there; one that says nothing whole of itself is not there, and is made anew."""
        stage = stage_of(until).name
        return None if self._manifest(until) is None else self.folder / self.run.states[stage]["artifact"]

    def _manifest(self, until: float) -> dict[str, Any] | None:
        return self.run.manifest(stage_of(until).name)

    @property
    def spec(self) -> dict[str, Any]:
        """Of a trial that came to its end, how it was trained."""
        found = self._manifest(1.0)
        assert found is not None
        spec: dict[str, Any] = found["spec"]
        return spec

    def warming(self, until: float) -> bool:
        """Whether the learning rate still rose where it was scored, so that the score says little of the end."""
        found = self._manifest(until)
        if found is None:
            return False
        schedule, training = Schedule.model_validate(found["spec"]["schedule"]), found["metrics"]["training"]
        return bool(training["steps"] <= schedule.warmed(training["planned_steps"]))

    def score(self, until: float) -> float | None:
        """What it was worth there."""
        found = self.metrics(until)
        return None if found is None else float(found["value"])


def _told(path: Path, fields: dict[str, type]) -> dict[str, Any]:
    """What a trial's file says: an object with these fields, each of its type."""
    found = sealed(path)
    if found is None or any(type(found.get(name)) is not kind for name, kind in fields.items()):
        raise ArtifactError(f"{path}: is damaged; delete {path.parent} and run again")
    return found


def _taken_up() -> dict[str, Any]:
    """Which machine this is, and how many processes it has killed for memory so far."""
    return {"boot": boot(), "killed_for_memory": killed_for_memory()}


def stage_of(until: float) -> Stage:
    """The part of a training that ends at a share of it, such as `train-20`."""
    return Stage(f"train-{100 * until:g}", 1, train_part)


def train_part(
    spec: Finetune, prepared: Artifact, before: Artifact | None = None, *, out: Output, model: str, precision: Precision,
    adapter: dict[str, Any], seed: int, marks: Sequence[float],
) -> None:  # fmt: skip
    """Train from where the part before ended to the last mark, and score at each: checkpoints, or after the last step what was learnt.

    Raises:
        Interrupted: as `finetune`.
        ModelError: the loss, or the score, is not finite.
        ProofError: as `finetune`.
    """
    if before is not None:
        for name in ("best", "checkpoints"):
            _copied(before / name, out / name)
    begun = begin(spec, prepared, out, model, precision, adapter, seed)
    training = begun.training
    at = {mark: step_of(mark, training.data) for mark in marks}
    done = training.run(at[marks[-1]], scored=[step for mark, step in at.items() if mark < 1])
    found = dict(training.watch.scored)
    # Weights that are kept are the best so far; a training that stopped early has no others.
    scores = {
        mark: training.watch.best if mark == 1 else found.get(step, training.watch.best) for mark, step in at.items()
    }
    if not all(score is not None and math.isfinite(score) for score in scores.values()):
        raise ModelError(
            f"the {training.judge.metric} on the validation rows is not a finite number after {done} steps"
        )
    if marks[-1] == 1:
        conclude(begun, out)
    else:
        for old in sorted((out / "checkpoints").glob("step-*"))[:-1]:
            shutil.rmtree(old)
    whole = Output(out.path, Events(out.events.path))  # the steps of all parts
    out.metrics.update({
        "metric": training.judge.metric, "lower_is_better": training.judge.lower_is_better, "value": scores[marks[-1]],
        "scores": {f"{mark:g}": score for mark, score in scores.items()}, "training": _figures(training, done, whole, marks[-1]),
    })  # fmt: skip


def _figures(training: Any, done: int, whole: Output, until: float) -> Mapping[str, Any]:
    """As of finetune; of a part on the way, there is nothing learnt to name yet."""
    found = figures(training, done, whole)
    return found if until == 1 else {**found, "learnt_sha256": {}}


def step_of(share: float, data: Dataset) -> int:
    """Steps after which so much of a training is done, at least one, where it can be resumed from."""
    steps = max(1, round(share * data.steps))
    return min(data.steps, -(-steps // data.repeats) * data.repeats)


def _copied(source: Path, target: Path) -> None:
    """Copy a folder such that a killed copy is not taken for a whole one."""
    if source.exists() and not target.exists():
        half = target.with_name(f"{target.name}.partial")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(source, half)
        half.rename(target)
