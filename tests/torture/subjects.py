"""Whom the trials are tried on: one small training, started, stopped, damaged and started again, as tunesmith or a peer does it."""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tunesmith.base import Run

STEPS, SAVE_EVERY = 24, 3
"""Optimizer steps of the training, over three epochs with dropout, and steps between its checkpoints."""
COLOURS = ("red", "green", "blue", "black")


def demonstrations(count: int = 48) -> list[dict[str, object]]:
    """Rows to learn from, as both read them."""
    return [
        {"messages": [{"role": "user", "content": f"Shade {n}?"}, {"role": "assistant", "content": COLOURS[n % 4]}]}
        for n in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Subject(Protocol):
    """A fine-tuning system that trains in a folder and goes on there when started again."""

    name: str

    def set_up(self, folder: Path, model: Path) -> None:
        """Write what `command` needs into a folder: rows, settings."""

    def command(self, folder: Path) -> list[str]:
        """What starts the training in `folder`, or goes on with it. Ends with 0 when it is done."""

    def environment(self) -> dict[str, str]:
        """What it runs under."""

    def checkpoints(self, folder: Path) -> list[Path]:
        """Its checkpoints, newest first."""

    def result(self, folder: Path) -> dict[str, str]:
        """sha256 of what a finished training left, by name; empty where it has not finished."""


def hashes(files: list[Path], below: Path) -> dict[str, str]:
    """sha256 by the file's path below a folder."""
    return {str(file.relative_to(below)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def alone() -> dict[str, str]:
    """This process's environment with one thread: equal bits, and room for other tests."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Tunesmith:
    """`tunesmith run` up to the end of training."""

    name: str = "tunesmith"
    settings: dict[str, object] = field(default_factory=dict)
    """Further settings of the recipe, by their dotted path."""

    def set_up(self, folder: Path, model: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "rows.jsonl", demonstrations())
        recipe = {
            "model": str(model), "precision": "fp32",
            "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 8, "cleaners": []},
            "initialise": {"adapter": {"rank": 4, "dropout": 0.1}},
            "finetune": {"epochs": 3.0, "batch": 4, "checkpoint_every": SAVE_EVERY, "optimizer": {"learning_rate": 0.01}},
            "evaluate": {"graders": [{"kind": "exact"}], "max_tokens": 4, "gate": {"margin": None, "beat": []}},
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(json.dumps(recipe))

    def command(self, folder: Path) -> list[str]:
        code = "from tunesmith.cli import main; main()"
        given = [f"{name}={json.dumps(value)}" for name, value in self.settings.items()]
        return [
            sys.executable,
            "-c",
            code,
            "finetune",
            str(folder / "recipe.yaml"),
            "--run",
            str(folder / "run"),
            *given,
        ]

    def environment(self) -> dict[str, str]:
        return alone()

    def checkpoints(self, folder: Path) -> list[Path]:
        found = (folder / "run").glob("finetune-*.partial/checkpoints/step-*")
        return sorted((path for path in found if path.suffix != ".partial"), reverse=True)

    def result(self, folder: Path) -> dict[str, str]:
        run = Run(folder / "run")
        if run.states.get("finetune", {}).get("state") != "done":
            return {}
        made = run.artifact("finetune")
        return {
            name: entry["sha256"] for name, entry in made.manifest["files"].items() if name.endswith(".safetensors")
        }


@dataclass
class Peer:
    """The same training by TRL's SFTTrainer, which `peer.py` starts as its documentation says, resuming from the last checkpoint there is."""

    python: Path
    name: str = "trl"

    def set_up(self, folder: Path, model: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "rows.jsonl", demonstrations()[:32])
        (folder / "model").symlink_to(model)

    def command(self, folder: Path) -> list[str]:
        script = Path(__file__).with_name("peer.py")
        return [str(self.python), str(script), str(folder), "--steps", str(STEPS), "--save-every", str(SAVE_EVERY)]

    def environment(self) -> dict[str, str]:
        return alone()

    def checkpoints(self, folder: Path) -> list[Path]:
        found = (folder / "run").glob("checkpoint-*")
        return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)

    def result(self, folder: Path) -> dict[str, str]:
        return hashes(list((folder / "done").glob("*.safetensors")), folder / "done")
