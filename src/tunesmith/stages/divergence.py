"""Divergence: how far a tuned model's own answers are from the model that it was tuned from.

KL(tuned || start) per token, estimated on answers that the tuned model samples: the mean of log p_tuned - log p_start (the estimator k1 of
Schulman, 2020, "Approximating KL divergence"; unbiased, so it may come out below zero where there is next to none).
"""

import json

import numpy as np
from pydantic import Field

from tunesmith.base import Artifact, DataError, Output, Spec, Stage
from tunesmith.base.files import write_atomic, write_json
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_examples, rendered_on
from tunesmith.grading.base import units
from tunesmith.grading.statistics import Array, Figure, interval
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import Precision, load, served
from tunesmith.training.rollouts import continued, seed_of

from .judge import likelihoods, merge


class Divergence(Spec):
    """How far tuning moved a model, on answers of its own."""

    rows: int | None = Field(100, ge=1)
    """Most test prompts that are answered; null takes all."""
    max_tokens: int = Field(64, ge=1)
    """Longest answer; a longer one is cut off."""


def divergence(
    spec: Divergence, prepared: Artifact, finetuned: Artifact, *, out: Output, model: str, precision: Precision, adapter: dict[str, object], seed: int
) -> None:  # fmt: skip
    """Write `divergence.json`, nats per token with a 95 % interval over prompts, and `answers.jsonl` with what was sampled.

    Raises:
        DataError: there are no test rows.
    """
    examples = load_examples(prepared.path, "test", spec.rows)
    if not examples:
        raise DataError("divergence: there are no test rows; set prepare.test or prepare.test_fraction")
    loaded = load(model, served(precision), today=rendered_on(prepared.path))
    merge(loaded, adapter, finetuned, precision)
    renderer = loaded.renderer()
    prompts = [renderer.prompt(example.asked, example.tools) for example in examples]
    samplings = [Sampling(spec.max_tokens, 1.0, seed=seed_of(seed, place)) for place in range(len(prompts))]
    said = generate(loaded, prompts, samplings)
    talks = map(continued, prompts, said)
    rows = [Row(example.origin, (talk,)) for example, talk in zip(examples, talks, strict=True)]
    tuned = likelihoods(loaded, rows)
    start = likelihoods(load(model, served(precision), today=rendered_on(prepared.path)), rows)
    apart_N = np.array([other.loss - one.loss for one, other in zip(tuned, start, strict=True)])
    tokens_N = np.array([one.tokens for one in tuned], dtype=np.float64)
    found = interval(Figure(np.stack([apart_N, tokens_N], 1), _mean, unit_N=units(examples)), seed=seed).to_json()
    figures = {**found, "tokens": int(tokens_N.sum()), "per_answer": float(apart_N.mean())}
    write_json(out / "divergence.json", figures)
    lines = ({"origin": row.origin, "answer": one.text, "nats": float(nats)} for row, one, nats in zip(rows, said, apart_N, strict=True))  # fmt: skip
    write_atomic(out / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    out.metrics.update(figures)


def _mean(sums: Array) -> Array:
    """Nats per token."""
    return np.asarray(sums[..., 0] / sums[..., 1])


STAGE = Stage("divergence", 3, divergence)
