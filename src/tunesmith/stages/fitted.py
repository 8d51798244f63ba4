"""Fitted: a recipe as memory settles it, with the estimate of each training kept for the report to compare with."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact
from tunesmith.base.files import digest, read_json, write_json
from tunesmith.data.prepared import load_split

from .finetune import Finetune
from .plan import Plan, check_memory, plans, recovery_plans
from .recipe import Recipe


def fitted(recipe: Recipe, prepared: Artifact, path: Path, about: dict[str, Any], adapter: dict[str, Any]) -> Recipe:
    """The recipe with what was left to memory as that decides it; each training is estimated once and kept at `path`.

    Raises:
        MachineError: a training would not fit into memory; says what would.
    """
    rows = load_split(prepared.path, "train")
    before = read_json(path) if path.exists() else {}
    kept = _estimated(before, recipe.finetune, [prepared.id, about, adapter], plans(recipe, rows))
    settled: dict[str, Any] = {"finetune": _settled(recipe.finetune, kept)}
    if again := recipe.prune.recovery:
        asked = [prepared.id, about, recipe.prune.adapter.model_dump(mode="json")]
        kept["recovery"] = _estimated(before.get("recovery", {}), again, asked, recovery_plans(recipe, rows))
        settled["prune"] = recipe.prune.model_copy(update={"recovery": _settled(again, kept["recovery"])})
    if kept != before:
        write_json(path, kept)
    return recipe.model_copy(update=settled)


def _estimated(
    kept: dict[str, Any], tune: Finetune, about: list[Any], planned: Iterable[Plan]
) -> dict[str, Any]:  # fmt: skip
    """What a training is expected to take: as it was kept, if that was asked in the same words, else estimated anew.

    Raises:
        MachineError: it would not fit into memory; says what would.
    """
    wanted = tune.activation_checkpointing
    asked = digest([*about, tune.model_dump(mode="json", exclude={"activation_checkpointing"})])
    if kept.get("asked") == asked and wanted in ("auto", kept["activation_checkpointing"]):
        return {name: value for name, value in kept.items() if name != "recovery"}
    found = check_memory(planned).estimate
    figures = {name: getattr(found, name) for name in ("peak_bytes", "seconds", "steps", "tokens")}
    return {"asked": asked, "activation_checkpointing": found.checkpointing, "estimate": figures}


def _settled(tune: Finetune, kept: dict[str, Any]) -> Finetune:
    """A training's settings, with what was left to memory as that decided it."""
    if tune.activation_checkpointing != "auto":
        return tune
    return tune.model_copy(update={"activation_checkpointing": kept["activation_checkpointing"]})
