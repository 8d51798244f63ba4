"""Merge: what several runs of one base learnt becomes one adapter, or one model where they changed the base's weights themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from tunesmith.base import Artifact, Output, Spec, Stage
from tunesmith.base.files import clear
from tunesmith.base.proof import Proof
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.merging import Merging
from tunesmith.methods.merging.cat import Cat
from tunesmith.methods.merging.peft_file import rank_of, read_corrections, silent, write_corrections
from tunesmith.models.load import Precision

from .judge import load_exact
from .sources import read_adapter

SAME = 1e-5
"""Largest difference between a merged correction and the one that is read back, relative to its largest value: float32 rounding."""
NOTHING = 1e-8
"""What is left of runs that cancel each other, as a share of their squared norms: float32 rounding."""


class Merge(Spec):
    """How what the runs learnt becomes one."""

    method: Merging = Cat()
    """How additions to the same weight are combined."""
    weights: tuple[float, ...] | None = Field(None, min_length=1)
    """How much of each run, in the order of the runs. Null takes equal shares of one, and 1 each for methods that average what agrees (ties, dare_ties)."""

    def of(self, count: int) -> list[float]:
        """A weight for each of `count` runs."""
        return list(self.weights or [1.0 if self.method.averages else 1 / count] * count)


def merge(
    spec: Merge, *finetuned: Artifact, out: Output, model: str, precision: Precision, adapters: list[dict[str, Any]], seed: int
) -> None:  # fmt: skip
    """Write `adapter/` (peft's format, or a whole model) and the proof; the figures say how it is read."""
    folders, weights = [one / "adapter" for one in finetuned], spec.of(len(finetuned))
    clear(out / "adapter")
    parts = (spec.method, weights, folders, torch.Generator().manual_seed(seed), model, precision)
    if all(rank_of(folder) is not None for folder in folders):
        made, proof, figures = _corrections(*parts, out)
    else:
        made, proof, figures = _weights(*parts, [read_adapter(tree) for tree in adapters], out)
    proof.write(out / "proof.json")
    out.metrics.update({
        "method": spec.method.kind, "weights": weights, "adapter": made.model_dump(mode="json"), **figures,
    })  # fmt: skip


def _corrections(
    method: Merging, weights: Sequence[float], folders: Sequence[Path], generator: torch.Generator, model: str,
    precision: Precision, out: Output,
) -> tuple[Adapter, Proof, dict[str, Any]]:  # fmt: skip
    """Low-rank corrections become one; a run that left a layer as it was adds nothing there."""
    runs = [read_corrections(folder) for folder in folders]
    ranks = [next(iter(run.values())).rank for run in runs]
    merged, given, whole, lost = {}, 0.0, 0.0, 0.0
    for path in sorted({path for run in runs for path in run}):
        like = next(run[path] for run in runs if path in run)
        found = [run.get(path) or silent(like, rank) for run, rank in zip(runs, ranks, strict=True)]
        merged[path], wanted_OI = method.correction(found, weights, generator)
        given += sum(float((weight * one.delta).square().sum()) for weight, one in zip(weights, found, strict=True))
        whole += float(wanted_OI.square().sum())
        lost += float((merged[path].delta - wanted_OI).square().sum())
    loaded = load_exact(model, precision)
    made = write_corrections(out / "adapter", merged, loaded.folder)
    made.restore(loaded, out / "adapter")
    apart = [
        float((layer.scale * layer.up @ layer.down).cpu().sub(merged[path].delta).abs().max())
        for path, layer in made.layers(loaded.model).items()
    ]
    largest = max(float(one.delta.abs().max()) for one in merged.values())
    proof = Proof()
    proof.claim("the runs do not cancel each other", whole > NOTHING * given, squared_norm=whole, of_the_runs=given)
    proof.claim("what is read back adds what was merged", max(apart) <= SAME * largest, largest_gap=max(apart))
    return made, proof, {"rank": made.rank, "kept": round(1 - lost / whole, 4) if whole else 0.0}


def _weights(
    method: Merging, weights: Sequence[float], folders: Sequence[Path], generator: torch.Generator, model: str,
    precision: Precision, adapters: Sequence[Adapter], out: Output,
) -> tuple[Adapter, Proof, dict[str, Any]]:  # fmt: skip
    """Every weight is the base's and what the method makes of the runs' differences from it; all runs are in memory, in float32."""
    base, tuned = load_exact(model, precision), []
    for adapter, folder in zip(adapters, folders, strict=True):
        one = load_exact(model, precision)
        adapter.restore(one, folder)
        adapter.merge(one)
        tuned.append(dict(one.model.named_parameters()))
    moved, finite = 0, True
    with torch.no_grad():
        for name, weight in base.model.named_parameters():
            differences = [run[name] - weight for run in tuned]
            if any(bool(difference.any()) for difference in differences):
                weight += method.combined(differences, weights, generator).to(weight.device)
                moved, finite = moved + 1, finite and bool(weight.isfinite().all())
    made = Full()
    made.save(base, out / "adapter")
    proof = Proof()
    proof.claim("a run changed the base", moved > 0, tensors=moved)
    proof.claim("every merged weight is finite", finite, tensors=moved)
    return made, proof, {}


STAGE = Stage("merge", 1, merge)
