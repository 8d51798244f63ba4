"""A small search over trainings of a tiny model, and what its trials came to."""

import json
from pathlib import Path

from tunesmith.base import Run
from tunesmith.base.files import read_json
from tunesmith.stages.search.trial import Trial

SPACE = {
    "finetune.optimizer.learning_rate": {"low": 1e-3, "high": 5e-2, "log": True},
    "initialise.adapter.rank": [2, 4, 8],
    "initialise.adapter.alpha": {"values": [1, 2], "times": "initialise.adapter.rank"},
    "finetune.batch": [4, 8],
}


def write_recipe(folder: Path, model: Path) -> Path:
    """A search over some trainings of a tiny model, with dropout, whose checkpoints fall between the shares at which trials are scored."""
    colours = ["red", "green", "blue", "black"]
    lines = [{"prompt": f"Shade {number}?", "answer": colours[number % 4]} for number in range(56)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(model),
        "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 8, "cleaners": []},
        "initialise": {"adapter": {"rank": 4, "alpha": 8, "dropout": 0.1}},
        "finetune": {"epochs": 2.0, "batch": 4, "checkpoint_every": 3, "optimizer": {"learning_rate": 0.01}},
        "search": {"trials": 3, "space": SPACE, "sampler": "random", "keep": 1},
        "evaluate": {
            "graders": [{"kind": "exact"}],
            "max_tokens": 4,
            "baselines": False,
            "gate": {"margin": None, "beat": []},
        },
        "deploy": {"ungated": True},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path


def results(run: Run) -> dict:
    return read_json(run.artifact("search") / "search.json")


def trials(run: Run) -> list[Trial]:
    return [Trial(path.parent) for path in sorted(run.path.glob("trials/*/*/trial.json"))]


def learnt(folder: Path) -> dict[str, str]:
    """sha256 of the weights below an artifact."""
    files = read_json(folder / "manifest.json")["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}
