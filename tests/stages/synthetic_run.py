"""A run folder with made-up stages, through the real `Run.once`, the real scoreboard, ledger and gate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from tunesmith.base import Artifact, Output, Run, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.base.proof import Proof
from tunesmith.data.example import Example
from tunesmith.data.ledger import Ledger
from tunesmith.grading import Likelihood
from tunesmith.grading.exact import Exact
from tunesmith.grading.gate import Gate
from tunesmith.grading.json_fields import JsonFields
from tunesmith.grading.perplexity import Perplexity
from tunesmith.grading.scoreboard import scoreboard
from tunesmith.stages.evaluate import headline

ROWS = 60
EVIL = '<script>alert("x")</script>'
RIGHT = {"base": 20, "few-shot": 30, "svm": 36, "tuned": 54}
"""Rows of 60 whose role each system gets right; the language is right everywhere."""


class Free(Spec):
    """A stage's settings, as a mapping."""

    given: dict[str, Any] = Field(default_factory=dict)

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """The mapping itself."""
        return self.given


PREPARE = {
    "source": "data/train.jsonl", "test": "data/test.jsonl", "test_fraction": 0.1, "test_rows": ROWS, "validation": None,
    "validation_fraction": 0.2, "validation_rows": None, "rows": None, "stratify": None, "group": None,
}  # fmt: skip
FINETUNE = {
    "objective": {"kind": "sft"},
    "optimizer": {"kind": "adamw", "learning_rate": 0.001},
    "schedule": {"shape": "linear", "warmup": 10},
    "epochs": 3.0,
}
EVALUATE = {"graders": [{"kind": "json_fields"}, {"kind": "exact"}, {"kind": "perplexity"}]}


def examples() -> list[Example]:
    return [
        Example(
            f"data/test.jsonl:{number}",
            ({"role": "user", "content": f"Describe package {number} {EVIL}"},),
            (({"role": "assistant", "content": json.dumps({"role": "program", "language": f"l{number % 7}"})},),),
            meta={"shop": "ab"[number % 2]},
        )
        for number in range(1, ROWS + 1)
    ]


def answers() -> dict[str, list[str]]:
    """Systems are right about the first so many rows; tuned about the last, so that it is worse on some."""
    made = {}
    for system, right in RIGHT.items():
        chosen = range(ROWS - right, ROWS) if system == "tuned" else range(right)
        golds = [json.loads(example.gold) for example in examples()]
        made[system] = [json.dumps(gold if row in chosen else {**gold, "role": EVIL}) for row, gold in enumerate(golds)]
    made["base"][-1] = f"I cannot say {EVIL}"
    return made


def prepare(spec: Spec, *, out: Output, seed: int) -> None:
    ledger = Ledger()
    for number in range(1, 101):
        row = ledger.enter(f"data/train.jsonl:{number}", "train")
        if number <= 3:
            ledger.settle(row, "quarantined", f"exact duplicate: of data/train.jsonl:9 {EVIL}")
        else:
            ledger.settle(row, "used", supervised=12)
    ledger.write(out / "ledger.jsonl")
    lengths = {
        "rows": 97,
        "length": {"min": 11, "median": 22, "p95": 33, "max": 44},
        "tokens": 2134,
        "prompt_tokens": 970,
        "supervised_tokens": 1164,
    }
    summary = {
        "sources": [{"split": "train", "path": "data/train.jsonl", "format": "messages", "fields": ["messages"], "rows": 100, "good": 100, "notes": []}],
        "counts": ledger.counts(),
        "splits": {"train": {**lengths, "ledger": ledger.counts("train")}, "validation": {**lengths, "rows": 0, "length": {}, "ledger": ledger.counts("validation")}},
        "cleaners": {"exact_duplicates": {"dropped": 3, "copies_in_test": 0, "conflicts": 1, "conflicting_rows": [["a:1", "b:2"]]}},
    }  # fmt: skip
    write_json(out / "summary.json", summary)
    (out / "test.jsonl").write_text(
        "".join(json.dumps(example.to_json()) + "\n" for example in examples()), encoding="utf-8"
    )


def initialise(spec: Spec, *parents: Artifact, out: Output, model: str) -> None:
    facts = {"name": model, "architecture": "LlamaForCausalLM", "fingerprint": "0123456789abcdef", "precision": "bf16"}
    write_json(
        out / "model.json", {**facts, "parameters": 134_515_008, "learning": 4_884_480, "forest": True, "notes": []}
    )
    proof = Proof()
    proof.claim("packed loss = padded loss", True, packed=2.66625, padded=2.66625, tolerance=0.02)
    proof.write(out / "proof.json")


def search(spec: Spec, *parents: Artifact, out: Output) -> None:
    write_json(out / "settings.json", {"trials": 0, "overrides": {}})


def step(out: Output, number: int, loss: float) -> None:
    out.events.write(
        "step",
        step=number,
        steps=40,
        loss=loss,
        gradient_norm=1.0,
        learning_rate=1e-3 / number,
        tokens=500,
        seconds=0.5,
    )


def finetune(spec: Spec, *parents: Artifact, out: Output, seed: int) -> None:
    for number in range(1, 31):
        step(out, number, 9.99)
    for number in range(21, 41):  # resumed from step 20
        step(out, number, 2.0 / number)
        if number % 10 == 0:
            out.events.write(
                "validation", step=number, metric="json_fields", value=50.0 + (number != 40) * number, best=number != 40
            )
    out.metrics.update({
        "steps": 40, "planned_steps": 40, "rows": 97, "loss": 0.05, "best_step": 30, "best_value": 80.0, "tokens": 20_000,
        "tokens_per_second": 1000.0, "step_seconds": 20.0, "peak_memory_mb": 1500,
    })  # fmt: skip


def evaluate(spec: Spec, *parents: Artifact, out: Output, given: dict[str, list[str]], gate: dict[str, Any]) -> None:
    rows = examples()
    likelihoods = {
        name: [Likelihood(loss + row % 3, 10) for row in range(ROWS)] for name, loss in (("base", 20.0), ("tuned", 5.0))
    }
    board = scoreboard(rows, given, [JsonFields(), Exact(), Perplexity()], likelihoods=likelihoods, slices=("shop",))
    general = scoreboard(rows, {}, [Perplexity()], likelihoods=likelihoods)
    decision = Gate.model_validate(gate)(board, general)
    results = {"task": board, "notes": {"base": "zero-shot"}, "general": general, "gate": decision}
    write_json(out / "results.json", results)
    lines = [
        json.dumps(
            {
                "origin": row.origin,
                "prompt": row.prompt[-1]["content"],
                "gold": row.gold,
                "answers": {name: said[number] for name, said in given.items()},
            }
        )
        for number, row in enumerate(rows)
    ]
    (out / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out.metrics.update(headline(results))


def run_until(
    folder: Path,
    last: str,
    gate: dict[str, Any] | None = None,
    graders: list[dict[str, Any]] | None = None,
    **replaced: Callable[..., None],
) -> Run:
    """A run whose stages are done up to `last`; stages can be replaced."""
    folder.mkdir()
    run = Run(folder)
    functions: dict[str, Callable[..., None]] = {
        "prepare": prepare,
        "initialise": initialise,
        "search": search,
        "finetune": finetune,
        "evaluate": evaluate,
    }
    specs = {
        "prepare": PREPARE,
        "initialise": {"adapter": {"kind": "lora", "rank": 16}},
        "finetune": FINETUNE,
        "evaluate": {"graders": graders} if graders else EVALUATE,
    }
    contexts: dict[str, dict[str, Any]] = {
        "prepare": {"seed": 7}, "initialise": {"model": "smollm2-135m"}, "finetune": {"seed": 7}, "evaluate": {"given": answers(), "gate": gate or {}},
    }  # fmt: skip
    made: list[Artifact] = []
    for name, function in functions.items():
        stage = Stage(name, 1, replaced.get(name, function))
        made.append(run.once(stage, Free(given=specs.get(name, {})), *made, **contexts.get(name, {})))
        if name == last:
            break
    return run
