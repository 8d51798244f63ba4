"""A small showdown of a random model."""

import json
from pathlib import Path

import yaml

EVIL = '<script>alert("x")</script>'
BUDGET = 12_000


def write_showdown(folder: Path, model: Path) -> Path:
    """A showdown of four roads of a random model, which earns something by chance: examples, pairs, a program's rewards and a reward model's."""
    colours = ["red", "green", "blue", "black"]
    for name, count in (("train", 24), ("test", 12)):
        lines = [
            {"messages": [{"role": "user", "content": f"{name} shade {n}? {EVIL}"}, {"role": "assistant", "content": " ".join([colours[n % 4]] * 6)}]}
            for n in range(count)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paid = [{"grader": {"kind": "chrf"}}]
    judged, constant = (
        [{"grader": {"kind": "reward_model", "run": "$judge.run"}}],
        {"schedule": {"shape": "constant", "warmup": 1}},
    )
    asked = {"system": "base", "rewards": paid, "samples": 3, "max_tokens": 6, "at_least": 0.0, "rows": 16}
    tree = {
        "base": {
            "model": str(model), "precision": "fp32",
            "prepare": {"source": "train.jsonl", "test": "test.jsonl", "validation_fraction": 0, "cleaners": []},
            "initialise": {"adapter": {"rank": 2}}, "finetune": {"optimizer": {"learning_rate": 0.02}, "batch": 4},
            "evaluate": {"graders": [{"kind": "chrf"}, {"kind": "exact"}], "max_tokens": 12, "shots": 0, "baselines": False, "general": None},
            "deploy": {"ungated": True, "prompts": 2},
        },
        "start": {"finetune": {"epochs": 0.4}},
        "steps": {
            "pairs": {"sample": {**asked, "keep": "pairs"}},
            "judge": {
                "prepare": {"source": "$pairs.rows", "test": None, "test_fraction": 0.2}, "finetune": {"objective": {"kind": "reward"}, "epochs": 1},
                "evaluate": {"graders": [{"kind": "pairwise"}], "gate": {"margin": None}},
            },
        },
        "roads": {
            "sft": {},
            "dpo": {"prepare": {"source": "$pairs.rows"}, "finetune": {"objective": {"kind": "dpo"}}},
            "grpo": {"finetune": {"objective": {"kind": "grpo"}, "rollouts": {"rewards": paid, "samples": 2, "max_tokens": 6}, **constant}},
            "rlhf": {"finetune": {"objective": {"kind": "ppo"}, "rollouts": {"rewards": judged, "samples": 2, "max_tokens": 6, "updates": 2}, **constant}},
        },
        "against": "sft", "budget": BUDGET, "divergence": {"max_tokens": 6}, "shown": 5,
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "small.yaml"
