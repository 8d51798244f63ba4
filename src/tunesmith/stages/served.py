"""The models that a server of finished runs holds: one run's merged model beside its base, or one base with the adapters of several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tunesmith.base import Artifact, ConfigError, MachineError, Run
from tunesmith.base.files import read_json
from tunesmith.kernels.decode import PAGE
from tunesmith.methods.merging.peft_file import rank_of
from tunesmith.methods.several import BASE, Several
from tunesmith.models.load import Loaded, load, served
from tunesmith.models.quantize import KINDS
from tunesmith.models.scheduler import cache_bytes

from .judge import learnt_by
from .machine import available_memory
from .merged import read_merged
from .order import RESOLVED

SHARE = 0.9
"""Of free memory, what keys and values may take; the rest is for what a step computes."""


def adapters_of(folders: Sequence[Path], deployed: Sequence[Artifact]) -> dict[str, Path]:
    """Where the adapters of several runs are, by the runs' names; none for one run, which is served merged. Reads no weights.

    Raises:
        ArtifactError: what one of them learnt, or started from, is damaged.
        ConfigError: they cannot be served from one base; says why.
    """
    first, found, bases = deployed[0].manifest["context"], dict[str, Path](), list[str]()
    if len(folders) == 1:
        return found
    for folder, one in zip(folders, deployed, strict=True):
        name, context = folder.resolve().name, one.manifest["context"]
        made = {parent["stage"]: parent["folder"] for parent in one.manifest["parents"]}
        learnt = Run(folder).open(made["merge"] if "merge" in made else made["finetune"])
        adapter = learnt / "adapter"
        if any(context[part] != first[part] for part in ("model", "precision")):
            theirs, ours = (f"{each['model']} in {each['precision']}" for each in (context, first))
            raise ConfigError(f"{folder}: was tuned from {theirs}, {folders[0]} from {ours}; serve them apart")
        if reason := _apart(context["precision"], one.metrics.get("precision", "auto"), adapter, made, learnt):
            raise ConfigError(f"{folder}: {reason}")
        bases.append(_base_of(Run(folder), learnt))
        if bases[-1] != bases[0]:
            theirs, ours = (f"{context['model']} ({each[:12]})" for each in (bases[-1], bases[0]))
            raise ConfigError(f"{folder}: was tuned from {theirs}, {folders[0]} from {ours}; serve them apart")
        if name in (BASE, *found):
            raise ConfigError(f"{folder}: there is a model called {name} already; rename the folder")
        found[name] = adapter
    return found


def _base_of(run: Run, learnt: Artifact) -> str:
    """The fingerprint of the base that something was learnt on; of what was merged, that of the first of its trainings, which were of one base.

    Raises:
        ArtifactError: what tells it is damaged.
        ConfigError: the runs that were merged are gone.
    """
    if learnt.manifest["stage"] == "merge":
        merged = learnt.manifest["parents"][0]["folder"]
        runs = [Run(path) for path in read_merged(run.path / RESOLVED).runs if (path / merged).exists()]
        if not runs:
            raise ConfigError(
                f"{run.path}: the runs that it was merged from are gone, and with them what its base was; serve it alone"
            )
        run, learnt = runs[0], runs[0].open(merged)
    made = {parent["stage"]: parent["folder"] for parent in learnt.manifest["parents"]}
    found: str = read_json(run.open(made["initialise"]) / "model.json")["fingerprint"]
    return found


def _apart(precision: str, few: str, adapter: Path, made: Mapping[str, str], learnt: Artifact) -> str | None:
    """Why what a run deployed is no base with low-rank corrections beside it; None where it is."""
    alone = "so it cannot share a base in memory; serve it alone"
    if "finetune" in made and learnt_by(learnt).scores:
        return "scores answers and writes none; leave it out"
    if "prune" in made:
        return f"was pruned, {alone}"
    if rank_of(adapter) is None:
        return f"learnt more than low-rank corrections, {alone}"
    if few in KINDS:
        return f"was measured with its merged weights in {few}, {alone}"
    return f"was trained on a base in {precision}, {alone}" if precision in KINDS else None


def models_of(deployed: Artifact, adapters: Mapping[str, Path]) -> dict[str, Loaded]:
    """By the name that clients ask for: `tuned` and `base` of one run; of several, `base` and the adapters' names."""
    context = deployed.manifest["context"]
    few = deployed.metrics.get("precision", "auto")
    if few == "int8" and torch.cuda.is_available():
        raise ConfigError(
            "this model was measured in int8, which is for CPUs; evaluate and deploy it again with evaluate.precision=auto"
        )
    model, precision = context["model"], served(context["precision"], few)
    if not adapters:
        return {"tuned": load(str(deployed / "model"), precision), BASE: load(model, precision)}
    return Several(load(model, precision), adapters).models


def check_cache(models: Mapping[str, Loaded], tokens: int, free: int | None = None) -> str | None:
    """Hold the keys and values of so many tokens of each model against the bytes that are free; what to warn of, if anything.

    Raises:
        MachineError: they do not fit on a GPU, which takes all of that at the first request. CPUs take it as requests come.
    """
    torch.cuda.empty_cache()  # what loading left over is free
    free = available_memory() if free is None else free
    needed = sum(cache_bytes(loaded, tokens) for loaded in models.values())
    if needed <= SHARE * free:
        return None
    fits = max(int(tokens * SHARE * free / needed) // PAGE, 1) * PAGE
    told = (
        f"serve.cache: keys and values of {tokens} tokens of each of {len(models)} models take {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free; "
        f"set it to {fits} or less"
    )
    if torch.cuda.is_available():
        raise MachineError(told)
    return told
