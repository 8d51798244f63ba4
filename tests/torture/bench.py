"""Where crash trials are made: one training at one place, its undisturbed end, and states of it that trials begin from."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import NONE, Ended, Fault, Operation, Server
from subjects import SAVE_EVERY, STEPS, Subject

from tunesmith.base import Run
from tunesmith.base.artifact import manifest_of
from tunesmith.base.files import sha256
from tunesmith.training.checkpoint import load_newest

LATE = 7
"""The save that a late state is just before: of step 21, when there are two checkpoints already."""


def whole(folder: Path) -> bool:
    """Whether an artifact's folder holds all that its manifest names, perhaps beside more and under the name of its making."""
    files = (manifest_of(folder) or {"files": {"": {}}})["files"]
    return all((folder / name).is_file() and sha256(folder / name) == about["sha256"] for name, about in files.items())


@dataclass
class Bench:
    """A subject's training, always in the same folder, since a run's artifacts may depend on their data's path."""

    server: Server
    root: Path
    place: Path
    model: Path
    wanted: dict[str, Any] = field(default_factory=dict)
    """What an undisturbed training leaves."""
    operations: list[Operation] = field(default_factory=list)
    """What it does to files."""

    @property
    def subject(self) -> Subject:
        """Whom the trials are tried on."""
        return self.server.subject

    def begin(self, state: str = "") -> None:
        """Put the folder into a state that was kept, or make it anew."""
        for folder in (self.place, self.place.with_name(f"{self.place.name}.trial")):
            shutil.rmtree(folder, ignore_errors=True)
        if state:
            for ending in ("", ".trial"):
                shutil.copytree(
                    self.root / f"{state}{ending}", self.place.with_name(self.place.name + ending), symlinks=True
                )
        else:
            self.subject.set_up(self.place, self.model)

    def keep(self, state: str) -> None:
        """Keep the folder's state, to begin trials from."""
        for ending in ("", ".trial"):
            shutil.copytree(
                self.place.with_name(self.place.name + ending), self.root / f"{state}{ending}", symlinks=True
            )

    def run(self, fault: Fault = NONE, **given: Any) -> Ended:
        """A process in the folder."""
        return self.server.run(self.place, fault, **given)

    def prepare(self) -> None:
        """Train undisturbed, and keep a state late in the training."""
        self.begin()
        self.operations = self._sound(self.run()).operations
        self.wanted = self.end()
        assert self.wanted
        saves = [
            one for one in self.operations if one.kind == "mkdir" and one.path.endswith(self._folder(LATE * SAVE_EVERY))
        ]
        self.begin()
        begun = self.run(Fault("kill", saves[0].place - 1))
        assert begun.struck
        assert begun.code == -9
        self.keep("late")

    def _folder(self, step: int) -> str:
        return f"step-{step:08d}.partial" if self.subject.name == "tunesmith" else f"checkpoint-{step}"

    def _sound(self, ended: Ended) -> Ended:
        assert ended.code == 0, ended.said[-2000:]
        return ended

    def count(self, mode: str, state: str, only: str = "", command: list[str] | None = None) -> list[Operation]:
        """Operations from a state to the end; with mode "full", those that take room, and the state is as after that."""
        self.begin(state)
        ended = self._sound(self.run(Fault(mode, 0, only), command=command))  # type: ignore[arg-type]
        return ended.operations

    def end(self) -> dict[str, Any]:
        """What a training left: sha256 of final weights, of the last checkpoint (weights, optimizer, cursor, random state), and the draws of each step."""
        result = self.subject.result(self.place)
        if not result:
            return {}
        return {**result, **(self._ours() if self.subject.name == "tunesmith" else self._peers())}

    def _ours(self) -> dict[str, Any]:
        """Draws come from (seed, step) and have no state: that they were equal shows in loss and gradient norm under dropout, to the last bit."""
        kept = self.place.with_name(f"{self.place.name}.trial") / "kept"
        last = {path.name.partition("|")[2]: path for path in kept.glob(f"*|checkpoints|step-{STEPS:08d}|*")}
        saved = {name: _hash(path) for name, path in last.items() if not name.endswith("manifest.json")}
        assert len(saved) == 3, sorted(last)
        steps = {
            (one["step"], one["loss"], one["gradient_norm"]) for one in Run(self.place / "run").events.read("step")
        }
        return {**saved, "steps": sorted(steps)}

    def _peers(self) -> dict[str, Any]:
        last = self.place / "run" / f"checkpoint-{STEPS}"
        names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
        state = json.loads((last / "trainer_state.json").read_text())
        losses = [(one["step"], one["loss"], one["grad_norm"]) for one in state["log_history"] if "loss" in one]
        return {
            **{f"checkpoint|{name}": _hash(last / name) for name in names},
            "step": state["global_step"],
            "steps": losses,
        }

    def repeated(self) -> int:
        """Most steps that were done again after a stop."""
        most, last = 0, 0
        for event in Run(self.place / "run").events.read("step"):
            most = max(most, last + 1 - event["step"])
            last = event["step"]
        return most

    def loadable(self) -> bool:
        """Whether a checkpoint is there that is whole, or all that comes of the training."""
        return any(
            whole(folder) or load_newest(folder / "checkpoints", lambda _: None) is not None
            for folder in (self.place / "run").glob("finetune-*")
        )

    def judge(self, note: Callable[..., None], trial: str) -> None:
        """Go on without a fault, and count whether it ended as if nothing had been."""
        again = self.run()
        found, lost = self.end(), self.repeated() if self.subject.name == "tunesmith" else 0
        apart = [name for name in self.wanted if found.get(name) != self.wanted[name]]
        held = again.code == 0 and not apart and lost <= SAVE_EVERY
        reason = (
            f"exit {again.code}: {again.said.strip()[-200:]}"
            if again.code
            else f"differs in {apart}; {lost} steps repeated"
        )
        note(trial, held, again.code != 0, reason)


def points(operations: list[Operation], count: int, draw: random.Random) -> list[Operation]:
    """Some of the operations, in order: all, or so many drawn at random."""
    return operations if count >= len(operations) else sorted(draw.sample(operations, count), key=lambda one: one.place)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
