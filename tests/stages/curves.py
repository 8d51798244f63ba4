"""A small recipe that a data curve is made of."""

import json
from pathlib import Path


def write_recipe(folder: Path, model: Path) -> Path:
    """A tiny model on two fields of a JSON answer, one value of them rare."""
    colours, sizes = ["red", "red", "green", "blue"], ["big", "big", "big", "small"]
    lines = [
        {
            "prompt": f"Thing {number}, {colours[number % 4]}?",
            "answer": json.dumps({"c": colours[number % 4], "s": sizes[number // 4 % 4]}),
        }
        for number in range(36)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(model),
        "precision": "fp32",
        "prepare": {
            "source": "rows.jsonl", "test_fraction": 16, "validation_fraction": 0, "cleaners": [], "classes": "answer.*",
        },
        "initialise": {"adapter": {"rank": 2}},
        "finetune": {"epochs": 1.0, "batch": 8, "optimizer": {"learning_rate": 0.02}, "schedule": {"warmup": 0}},
        "evaluate": {
            "graders": [{"kind": "chrf"}, {"kind": "json_fields"}, {"kind": "perplexity"}], "max_tokens": 17, "shots": 1,
            "general": None,
        },
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path
