"""Prune: weights or whole parts taken out of the tuned model, tuning again if wanted, and what that costs and saves; does nothing unless asked."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from tunesmith.base import Artifact, ModelError, Output, Spec, Stage
from tunesmith.base.files import clear, read_json, write_json
from tunesmith.base.proof import Proof
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_split, rendered_on
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.pruning import Pruning
from tunesmith.methods.pruning.walk import refusal
from tunesmith.models import memory, prompt
from tunesmith.models.forward import padded_logps
from tunesmith.models.load import DTYPES, Loaded, Precision, load, load_config, parameters, served
from tunesmith.models.prompt import save_model

from .finetune import Finetune, set_up
from .initialise import SAMPLE, gap, last_logits
from .judge import load_exact
from .measures import as_served, deflated, paces, perplexities, zeros
from .splits import splits
from .tuning import figures

FACTS = "facts.json"
"""Written into the folder of the pruned model when that is whole: a killed stage goes on from there."""
EXACT = 1e-3
"""Largest difference of log-probabilities, in fp32, between what must be the same model."""


class Prune(Spec):
    """What is taken out of the tuned model before it is evaluated; null takes nothing."""

    method: Pruning | None = None
    """Which weights go."""
    recovery: Finetune | None = None
    """Tuning again after that, on the same rows, with settings of its own: {epochs: 1, optimizer: {learning_rate: 0.00002}}. What is zero stays zero.
    Null leaves the model as it was pruned."""
    adapter: Adapter = Full()
    """Which weights learn then."""

    @model_validator(mode="after")
    def _recovery_fits(self) -> Self:
        if self.recovery is None:
            return self
        kind = self.adapter.kind
        if self.method is None:
            raise ValueError("recovery follows pruning: say what goes, e.g. method: {kind: wanda}, or leave it out")
        if self.recovery.optimizer.moves_frozen or not self.adapter.merges:
            culprit = f"adapter {kind}" if not self.adapter.merges else f"optimizer {self.recovery.optimizer.kind}"
            raise ValueError(f"recovery changes the weights themselves, which {culprit} does not end in; take another")
        if self.adapter.adds_weights and not self.method.smaller:
            raise ValueError(
                f"adapter {kind} learns beside the weights, and merged into them would fill the zeros of {self.method.kind}; take adapter: {{kind: full}}"
            )
        return self

    def check(self, folder: Path) -> None:
        """Refuse a model that cannot be pruned, by its folder.

        Raises:
            ModelError: says why.
        """
        if self.method is None:
            return
        for beside, what in ((prompt.FILE, "prompt"), (memory.FILE, "memory")):
            if (folder / beside).exists():
                raise ModelError(
                    f"prune: {folder} has a {what} that learnt, which is no part of its weights; prune its base instead"
                )
        self.method.check(load_config(folder))

    def check_loaded(self, initialised: Artifact) -> None:
        """Refuse a model whose layers cannot be walked through, as was found out when it was loaded.

        Raises:
            ModelError: its attention does not take what the walk gives it.
        """
        if self.method is not None and self.method.walks and not initialised.metrics["forest"]:
            raise ModelError(refusal(initialised.manifest["context"]["model"]))


def prune(
    spec: Prune, prepared: Artifact, finetuned: Artifact, *, out: Output, model: str, precision: Precision, adapter: dict[str, Any],
    seed: int, made_by: int | None = None,
) -> None:  # fmt: skip
    """Write `model/`, a whole model in float32, and the proof; without a method, nothing.

    `made_by` is the version of the training stage, which tells what was tuned again by another one apart.

    Raises:
        Interrupted: SIGINT or SIGTERM while tuning again; the next call goes on from the step it arrived in.
        ModelError: the method cannot prune this model.
        ProofError: the model is not what was asked for.
    """
    out.metrics["kind"] = spec.method.kind if spec.method else "none"
    if spec.method is None:
        return
    cut = out / "pruned"
    if not (cut / FACTS).exists():
        _cut(spec.method, prepared, _merged(finetuned, model, precision, adapter, prepared), cut, precision, seed)
    facts = read_json(cut / FACTS)
    proof = Proof()
    proof.claims, metrics = facts["claims"], facts["metrics"]
    clear(out / "model")
    if spec.recovery is None:
        (cut / FACTS).unlink()
        shutil.rmtree(out / "model")
        cut.rename(out / "model")
    else:
        metrics["recovery"], metrics["perplexity"]["recovered"] = _recover(
            spec, prepared, cut, out, precision, seed, proof
        )
    proof.write(out / "proof.json")
    out.scratch = ("pruned", "checkpoints", "best", "adapter")
    out.metrics.update(metrics)


def _merged(
    finetuned: Artifact, model: str, precision: Precision, adapter: dict[str, Any], prepared: Artifact
) -> tuple[Loaded, Proof]:
    """The tuned model in float32 with what was learnt in its weights, and the claim that it is."""
    chosen: Adapter = Adapter.member(adapter["kind"]).model_validate(adapter)
    rows, proof = load_split(prepared.path, "train"), Proof()
    loaded = load_exact(model, precision, rendered_on(prepared.path))
    chosen.restore(loaded, finetuned / "adapter")
    beside = last_logits(loaded, rows)
    chosen.merge(loaded)
    loaded.model.requires_grad_(False)
    apart = gap(beside, last_logits(loaded, rows))
    proof.claim("merged = adapter, in fp32", apart < EXACT, largest_logp_gap=apart)
    return loaded, proof


def _cut(
    method: Pruning, prepared: Artifact, merged: tuple[Loaded, Proof], folder: Path, precision: Precision, seed: int
) -> None:  # fmt: skip
    """Prune, write the model, and last the facts about it."""
    clear(folder)
    loaded, proof = merged
    rows = load_split(prepared.path, "train")
    before = {"parameters": parameters(loaded.model), "deflated": deflated(loaded.model)}
    twin = as_served(loaded, precision)
    perplexity = {"before": perplexities(twin, prepared)}
    kept = method.silence(loaded, _drawn(rows, method.rows, seed))
    silenced = last_logits(loaded, rows)
    model = method.shrunk(loaded.model, kept)
    loaded.release()
    save_model(model, folder)
    loaded.tokenizer.save_pretrained(folder)
    del loaded, merged, model
    pruned = _reopened(proof, silenced, folder, rows, "what was left in place, and the rest silenced", twin.today)
    method.prove(proof, pruned.model)
    after = {"parameters": parameters(pruned.model), "deflated": deflated(pruned.model)}
    left, size = as_served(pruned, precision), DTYPES[twin.precision].itemsize
    perplexity["pruned"] = perplexities(left, prepared)
    old, new = paces([twin, left], seed)
    metrics = {
        **{name: {"before": before[name], "after": after[name]} for name in before},
        "bytes": {"before": size * before["parameters"], "after": size * after["parameters"]},
        "zeros": zeros(pruned.model),
        "perplexity": perplexity,
        "speed": {
            name: {
                "before": asdict(old)[name],
                "after": asdict(new)[name],
                "ratio": asdict(new)[name] / asdict(old)[name],
            }
            for name in ("reading", "writing")
        },
        "precision": twin.precision,
        "recovery": None,
    }
    write_json(folder / FACTS, {"claims": proof.claims, "metrics": metrics})


def _drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Some rows at random."""
    places = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[place] for place in places.tolist()]


def _recover(
    spec: Prune, prepared: Artifact, cut: Path, out: Output, precision: Precision, seed: int, proof: Proof
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Tune the pruned model again and write it; figures of the training, and the perplexities it ended with."""
    assert spec.method is not None
    assert spec.recovery is not None
    loaded = load(str(cut), served(precision), today=rendered_on(prepared.path))
    loaded.checkpointing = spec.recovery.activation_checkpointing is True
    held = spec.method.zeros(loaded.model)
    spec.adapter.attach(loaded, seed)
    given, held_out = splits(spec.recovery, prepared, str(cut), precision, seed)
    training = set_up(spec.recovery, loaded, spec.adapter, given, held_out, out, seed)
    hold_at_zero(training.parameters, held, training.optimizer)
    done = training.run()
    training.keep_best()
    training.keep(spec.adapter)
    exact = load(str(cut), "fp32")
    spec.adapter.restore(exact, out / "adapter")
    spec.adapter.merge(exact)
    rows = load_split(prepared.path, "train")
    learnt = last_logits(exact, rows)
    exact.release()
    save_model(exact.model, out / "model")
    exact.tokenizer.save_pretrained(out / "model")
    recovered = _reopened(proof, learnt, out / "model", rows, "what was tuned again", loaded.today)
    weights = dict(recovered.model.named_parameters())
    moved = sum(int(weights[name][zero].count_nonzero()) for name, zero in held.items())
    if held:
        count = sum(int(zero.sum()) for zero in held.values())
        proof.claim("pruned weights stayed zero while the others learnt", moved == 0, zeros=count, moved=moved)
    return figures(training, done, out), perplexities(as_served(recovered, precision), prepared)


def hold_at_zero(
    learning: Mapping[str, nn.Parameter], zeros: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Keep weights at zero, bit for bit, through every step of an optimizer; their gradients count for nothing, clipping included.

    Args:
        learning: what learns, by name.
        zeros: by name, bool: what is held.
        optimizer: over what learns.
    """
    held = [(learning[name], zero) for name, zero in zeros.items() if name in learning]

    def forget(parameter: Tensor, zero: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.masked_fill_(zero, 0.0)

    def put_back(*_: Any) -> None:
        with torch.no_grad():
            for parameter, zero in held:
                parameter.masked_fill_(zero, 0.0)

    for parameter, zero in held:
        parameter.register_post_accumulate_grad_hook(lambda one, zero=zero: forget(one, zero))  # type: ignore[no-untyped-call]
    optimizer.register_step_post_hook(put_back)


def _reopened(
    proof: Proof, expected_M: Tensor, folder: Path, rows: list[Row], what: str, today: str | None
) -> Loaded:  # fmt: skip
    """The model in a folder, with the claim that it is what was in memory."""
    found = load(str(folder), "fp32", today=today)
    fused = gap(expected_M, last_logits(found, rows))
    with torch.no_grad():
        plain = gap(expected_M, padded_logps(found, Batch.of(rows[:SAMPLE])))
    holds = max(fused, plain) < EXACT
    proof.claim(f"the model folder is {what}", holds, largest_logp_gap=fused, by_transformers_own_layers=plain)
    return found


STAGE = Stage("prune", 1, prune)
