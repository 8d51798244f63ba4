"""A search in its folder: any number of processes may work at it; each looks at what is there, claims one part of one trial, and trains it.

There is no account beside the files. A trial is a run folder; who works at it holds its lock, which the system takes back when a process
dies, and whoever comes next goes on from its checkpoint. Only proposing takes turns.
"""

import fcntl
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, BusyError, ConfigError, Events, ModelError, ProofError
from tunesmith.base.errors import exhausted
from tunesmith.base.files import write_sealed
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_split

from ..estimate import gigabytes
from ..machine import available_memory
from ..plan import plans
from ..recipe import Recipe
from .proposals import Known, propose, snapped
from .settings import Search
from .space import chosen, given, space_of
from .trial import FACTS, PLANNED, Trial, stage_of

PAUSE = 0.5
"""Seconds between looks while others train what has to be there first."""
LOST = (ModelError, ProofError, ConfigError)
"""What settings of one trial can bring about; anything else would meet every trial."""


DEATHS, KILLS = 3, 20
"""Times that the process of a trial may die without getting further, before the trial is taken to be the reason: when memory ran out, and in all."""


@dataclass(frozen=True)
class Study:
    """Trials of a recipe on prepared rows."""

    folder: Path
    recipe: Recipe
    """As given; its search says how many trials, and how far."""
    prepared: Artifact
    events: Events
    """Of the run, for whoever watches it."""
    budget: int | None = None
    """Bytes that a trial may need; None is all that is free."""

    @property
    def search(self) -> Search:
        """How settings are searched for."""
        return self.recipe.search

    @cached_property
    def rows(self) -> list[Row]:
        """What trials learn from."""
        return load_split(self.prepared.path, "train")

    def trials(self) -> list[Trial]:
        """All there are, in order."""
        found = [Trial(path.parent) for path in sorted(self.folder.glob(f"*/{FACTS}"))]
        return [trial for trial in found if trial.number < self.search.trials]

    def work(self) -> None:
        """Train until nothing is left to train.

        Raises:
            Interrupted: the part under way is saved; the next call goes on from there.
            TunesmithError: what would meet every trial.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._reconsider()
        while True:
            with ExitStack() as held:
                claimed, left = self._claim(held)
                if claimed is not None:
                    self._train(*claimed)
            if claimed is None and not left:
                return
            if claimed is None:
                time.sleep(PAUSE)

    def _claim(self, held: ExitStack) -> tuple[tuple[Trial, int] | None, bool]:
        """A part that nobody else trains, its trial's lock held, or None; and whether any is left."""
        with self._turn():
            trials = self.trials()
            for rung, until in enumerate(self.search.rungs):
                open_ = [trial for trial in self.sent(trials, rung) if not trial.refused and trial.made(until) is None]
                for trial in open_:
                    if _locked(trial, held):
                        if not trial.refused and trial.made(until) is None:
                            return (trial, rung), True
                        held.close()  # whoever had it was done with it just then
                if rung == 0 and len(trials) < self.search.trials and (new := self._proposed(trials)):
                    _locked(new, held)
                    return (new, 0), True
                if open_:
                    return None, True
        return None, False

    def _reconsider(self) -> None:
        """Let trials be planned anew that did not fit into what was free then, and would now."""
        free = available_memory() if self.budget is None else self.budget
        with self._turn():
            for trial in self.trials():
                needed = (trial.planned or {}).get("needed", 0)
                if (trial.refused or {}).get("state") == "infeasible" and needed <= free:
                    trial.retried()

    def left(self) -> bool:
        """Whether anything is left to train."""
        with ExitStack() as held:
            claimed, left = self._claim(held)
        return left or claimed is not None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with (self.folder / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def sent(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        """The trials that are trained as far as a rung, the best of the one before first; all of that have to be done."""
        if rung == 0:
            return list(trials)
        before = self.ranked(self.sent(trials, rung - 1), rung - 1)
        count = self.search.keep if self.search.scheme == "early" else math.ceil(len(before) / 2)
        going = [
            trial for trial in before if not trial.refused
        ]  # the place of one that came to nothing is the next best's
        return going if self.search.audit else going[:count]

    def ranked(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        """Those that have a score there, the best first, the earlier of equals before the later."""
        found = []
        for trial in trials:
            metrics = trial.metrics(self.search.rungs[rung])
            if metrics is not None:
                found.append(
                    (metrics["value"] if metrics["lower_is_better"] else -metrics["value"], trial.number, trial)
                )
        return [trial for *_, trial in sorted(found, key=lambda each: each[:2])]

    def _proposed(self, trials: Sequence[Trial]) -> Trial | None:
        """A new trial, recorded with what it was proposed from; None where all settings have been tried."""
        number = next(place for place in range(len(trials) + 1) if all(place != trial.number for trial in trials))
        space = space_of(self.recipe)
        first = self.search.rungs[0]
        known = [Known(trial.settings, trial.score(first)) for trial in trials]
        own = snapped(space, given(self.recipe.model_dump(mode="json"), space)), "recipe"
        lower = self.lower_is_better(trials)
        proposed = own if number == 0 else propose(self.search, space, self.recipe.seed, number, known, lower)
        if proposed is None:
            return None
        settings, by = proposed
        folder = self.folder / f"{number:04d}"
        folder.mkdir(exist_ok=True)
        scores = {str(trial.number): each.score for trial, each in zip(trials, known, strict=True)}
        write_sealed(folder / FACTS, {"number": number, "settings": settings, "by": by, "known": scores})
        return Trial(folder)

    def lower_is_better(self, trials: Sequence[Trial]) -> bool:
        """Of the scores; it does not matter before there are any."""
        found = (trial.metrics(self.search.rungs[0]) for trial in trials)
        return next((metrics["lower_is_better"] for metrics in found if metrics is not None), True)

    def _train(self, trial: Trial, rung: int) -> None:
        """Train one part, or find that it cannot be."""
        until = self.search.rungs[rung]
        try:
            recipe = self._laid(trial)
            died, for_memory = trial.deaths()
            if for_memory >= DEATHS or died >= KILLS:
                why = "as one does that takes too much memory" if for_memory >= DEATHS else "whatever it died of"
                trial.refuse("failed", f"its process died {died} times at the same place, {why}")
            elif reason := self._planned(trial, recipe):
                trial.refuse("infeasible", reason)
            else:
                trial.taken_up()
                self._parts(trial, recipe, rung)
        except LOST as error:
            trial.refuse("failed", str(error))
        except (RuntimeError, MemoryError) as error:
            if not exhausted(error):
                raise
            trial.outgrown()
        metrics, refused = trial.metrics(until) or {}, trial.refused or {}
        self.events.write(
            "trial", number=trial.number, of=self.search.trials, share=until, settings=trial.settings, metric=metrics.get("metric"),
            value=metrics.get("value"), **refused,
        )  # fmt: skip

    def _laid(self, trial: Trial) -> Recipe:
        """The recipe that a trial trains by; the recipe's own settings to the last bit."""
        return chosen(self.recipe, trial.settings if trial.number else {})

    def whole(self, trial: Trial) -> Artifact:
        """What a trial that came to its end made, verified; what is damaged is trained again."""
        with trial.run.lock():
            return self._parts(trial, self._laid(trial), len(self.search.rungs) - 1)

    def _planned(self, trial: Trial, recipe: Recipe) -> str | None:
        """Why it would not fit into memory; planned before anything is loaded, and again for less memory where no part has been finished by the plan."""
        planned = trial.planned
        less = planned is not None and self.budget is not None and planned["needed"] > self.budget
        if planned is not None and less and any(trial.made(until) for until in self.search.rungs):
            return _lacking(planned["needed"], self.budget or 0)
        if planned is None or less:
            found = next(plans(recipe, self.rows, self.budget)).estimate
            planned = {
                "needed": found.needed, "available": found.available, "checkpointing": found.checkpointing,
                "reason": None if found.fits else _lacking(found.needed, found.available),
            }  # fmt: skip
            write_sealed(trial.folder / PLANNED, planned)
        return planned.get("reason")

    def _parts(self, trial: Trial, recipe: Recipe, rung: int) -> Artifact:
        """Every part as far as a rung, the last of them returned; those that are there are not trained again."""
        tune, before = recipe.finetune, tuple[Artifact, ...]()
        if tune.activation_checkpointing == "auto":
            again = bool((trial.planned or {}).get("checkpointing"))
            tune = tune.model_copy(update={"activation_checkpointing": again})
        about: dict[str, Any] = {
            "model": recipe.model,
            "precision": recipe.precision,
            "seed": recipe.seed,
            "adapter": recipe.initialise.adapter.model_dump(mode="json"),
        }
        for place in range(rung + 1):
            marks = list(self.search.marks(place))
            before = (trial.run.once(stage_of(marks[-1]), tune, self.prepared, *before, marks=marks, **about),)
        return before[-1]


def _locked(trial: Trial, held: ExitStack) -> bool:
    """Whether nobody else holds a trial; from now on we do."""
    try:
        held.enter_context(trial.run.lock())
    except BusyError:
        return False
    return True


def _lacking(needed: int, available: int) -> str:
    return f"needs about {gigabytes(needed)}, {gigabytes(available)} free"
