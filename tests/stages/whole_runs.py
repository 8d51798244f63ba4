"""A small whole run of a tiny model."""

import json
from pathlib import Path


def write_recipe(folder: Path, model: Path) -> Path:
    """A run of 24 steps of a tiny model, with dropout, over three epochs."""
    colours = ["red", "green", "blue", "black"]
    lines = [
        {"messages": [{"role": "user", "content": f"Shade {n}?"}, {"role": "assistant", "content": colours[n % 4]}]}
        for n in range(48)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(model),
        "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 8, "cleaners": []},
        "initialise": {"adapter": {"rank": 4, "dropout": 0.1}},
        "finetune": {"epochs": 3.0, "batch": 4, "checkpoint_every": 3, "optimizer": {"learning_rate": 0.01}},
        "evaluate": {"graders": [{"kind": "exact"}], "max_tokens": 4, "gate": {"margin": None, "beat": []}},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path
