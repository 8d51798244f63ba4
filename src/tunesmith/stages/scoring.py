"""Evaluate and deploy for models that score answers: what they prefer against what people did, and the folder that other programs read."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.base import Artifact, Output
from tunesmith.base.files import write_atomic, write_json
from tunesmith.base.proof import Proof
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.grading.scoreboard import scoreboard
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.objectives.reward import Reward
from tunesmith.models.forward import token_logps
from tunesmith.models.heads import restore_head
from tunesmith.models.load import DTYPES, Loaded, Precision, load, served
from tunesmith.models.scorer import load_scorer, save_scorer, score_rows

from .judge import ROWS, load_exact, merge

if TYPE_CHECKING:
    from .deploy import Deploy
    from .evaluate import Evaluate

SAMPLE = 16
"""Test rows whose scores the proof of a deployed model compares."""
STORED = {"fp32": 1e-3, "bf16": 0.5}
"""Largest difference of a score, once weights are stored."""


def evaluate_scores(
    spec: "Evaluate", objective: Reward, prepared: Artifact, finetuned: Artifact, *, out: Output, model: str, precision: Precision,
    adapter: dict[str, Any], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Write every system's scores, `results.json` with the scoreboard and the gate's decision, and the proof; the results.

    Raises:
        DataError: the test rows are not what the objective learns from.
    """
    test, rows = load_examples(prepared.path, "test", spec.rows), load_split(prepared.path, "test", spec.rows)
    objective.check(rows)
    loaded = load(model, served(precision), today=rendered_on(prepared.path))
    scores, notes = _rivals(objective, loaded, load_split(prepared.path, "train"), rows)
    merge(loaded, adapter, finetuned, precision)
    restore_head(loaded, finetuned / "adapter")
    scores["tuned"] = score_rows(loaded, rows)
    board = scoreboard(test, {}, spec.graders, scores=scores, slices=spec.slices, seed=seed)
    results = {"task": board, "notes": notes, "general": None, "gate": spec.gate(board, None)}
    write_json(out / "results.json", results)
    lines = [
        json.dumps({"origin": example.origin, "scores": {system: told[number] for system, told in scores.items()}})
        for number, example in enumerate(test)
    ]
    write_atomic(out / "scores.jsonl", "\n".join(lines) + "\n")
    proof, told = Proof(), np.array(scores["tuned"])
    proof.claim("every score is finite", bool(np.isfinite(told).all()), rows=len(rows))
    proof.claim(
        "answers are told apart", len(rows) == 1 or bool(np.ptp(told) > 0), lowest=told.min(), highest=told.max()
    )
    proof.write(out / "proof.json")
    return results


@torch.no_grad()
def _rivals(
    objective: Reward, loaded: Loaded, train: list[Row], rows: list[Row]
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """What the tuned model is compared with, and how each was made."""
    if objective.loss == "regression":
        mean = float(np.mean([row.columns[objective.target] for row in train]))
        return {"base": [[mean]] * len(rows)}, {"base": "the mean of the training rows' scores, whatever the answer"}
    loaded.model.eval()
    likely: list[list[float]] = []
    for start in range(0, len(rows), ROWS):
        batch = Batch.of(rows[start : start + ROWS])
        count_S = torch.bincount(batch.sequence_M, minlength=len(batch.row_S))
        likely += (batch.per_sequence(token_logps(loaded, batch)).cpu() / count_S).view(-1, 2).tolist()
    long = [[float(sequence.learn.sum()) for sequence in row.sequences] for row in rows]
    notes = {
        "base": "log-probability per token under the model before training",
        "length": "tokens of an answer: what a reward model learns first where people like long answers",
    }
    return {"base": likely, "length": long}, notes


def deploy_scorer(
    spec: "Deploy", prepared: Artifact, finetuned: Artifact, *, out: Output, model: str, precision: Precision, adapter: dict[str, Any]
) -> Proof:  # fmt: skip
    """Write `model/`, in the format of transformers' AutoModelForSequenceClassification; the proof that it scores as what was trained.

    Raises:
        ModelError: transformers has no such form of this architecture.
    """
    rows = load_split(prepared.path, "test")[:SAMPLE]
    chosen: Adapter = Adapter.member(adapter["kind"]).model_validate(adapter)
    loaded = load_exact(model, precision, rendered_on(prepared.path))
    chosen.restore(loaded, finetuned / "adapter")
    restore_head(loaded, finetuned / "adapter")
    trained = np.array(score_rows(loaded, rows))
    chosen.merge(loaded)
    proof = Proof()
    merged = float(np.abs(np.array(score_rows(loaded, rows)) - trained).max())
    proof.claim("merged = adapter, in fp32", merged < STORED["fp32"], largest_score_gap=merged)
    loaded.release()
    loaded.model.to(DTYPES[spec.weights])
    save_scorer(loaded, out / "model")
    stored = float(np.abs(np.array(score_rows(load_scorer(str(out / "model"), "fp32"), rows)) - trained).max())
    claim = f"stored in {spec.weights} = trained"
    proof.claim(claim, stored < STORED[spec.weights], largest_score_gap=stored)
    out.metrics.update({"score_gap": stored, "bytes": sum(path.stat().st_size for path in (out / "model").iterdir())})
    return proof
