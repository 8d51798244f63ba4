"""Fitted: a recipe as memory settles it, with the estimate of each training kept for the report to compare with."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact
from tunesmith.base.files import digest, known_sha256, read_json, write_json
from tunesmith.data.prepared import load_split

from .finetune import Finetune
from .inputs import named, read_in_training
from .machine import available_memory, resident_memory
from .plan import Plan, check_memory, plans, recovery_plans
from .recipe import Recipe


def fitted(
    recipe: Recipe, prepared: Artifact, path: Path, about: dict[str, Any], adapter: dict[str, Any],
    states: Mapping[str, Any] | None = None,
) -> Recipe:  # fmt: skip
    """The recipe with what was left to memory as that decides it; each training is estimated once and kept at `path`.

    Args:
        states: of the run's stages, to look whether what is still to be trained fits into what is free now, and estimate it anew if not; a training that
            has begun keeps the settings that it goes on with. None does not look.

    Raises:
        MachineError: a training would not fit into memory; says what would.
    """
    rows = load_split(prepared.path, "train")
    before = read_json(path) if path.exists() else {}

    def learning(tune: Finetune) -> Iterable[Plan]:
        return plans(recipe.model_copy(update={"finetune": tune}), rows)

    def recovering(tune: Finetune) -> Iterable[Plan]:
        prune = recipe.prune.model_copy(update={"recovery": tune})
        return recovery_plans(recipe.model_copy(update={"prune": prune}), rows)

    state = {name: "done" if states is None else states.get(name, {}).get("state") for name in ("finetune", "prune")}
    asked = [prepared.id, about, adapter, *_digests(recipe, recipe.finetune)]
    kept = _estimated(before, recipe.finetune, asked, learning, state["finetune"])
    settled: dict[str, Any] = {"finetune": _settled(recipe.finetune, kept)}
    if again := recipe.prune.recovery:
        asked = [prepared.id, about, recipe.prune.adapter.model_dump(mode="json"), *_digests(recipe, again)]
        kept["recovery"] = _estimated(before.get("recovery", {}), again, asked, recovering, state["prune"])
        settled["prune"] = recipe.prune.model_copy(update={"recovery": _settled(again, kept["recovery"])})
    if kept != before:
        write_json(path, kept)
    return recipe.model_copy(update=settled)


def _digests(recipe: Recipe, tune: Finetune) -> list[str]:
    """What tells the models of a training from others that stood under the same names; none of an embedded one."""
    return [known_sha256(path) for path in (*named(recipe.model), *read_in_training(tune))]


def _estimated(
    kept: dict[str, Any], tune: Finetune, about: list[Any], planned: Callable[[Finetune], Iterable[Plan]], state: str | None
) -> dict[str, Any]:  # fmt: skip
    """What a training is expected to take: as it was kept, if that was asked in the same words and is done or still fits, else estimated anew.

    Raises:
        MachineError: it would not fit into memory; says what would.
    """
    wanted = tune.activation_checkpointing
    asked = digest([*about, tune.model_dump(mode="json", exclude={"activation_checkpointing"})])
    if kept.get("asked") == asked and wanted in ("auto", kept["activation_checkpointing"]):
        if state == "done" or kept["estimate"]["peak_bytes"] - resident_memory() <= available_memory():
            return {name: value for name, value in kept.items() if name != "recovery"}
        if state is not None:
            tune = _settled(tune, kept)
    found = check_memory(planned(tune)).estimate
    figures = {name: getattr(found, name) for name in ("peak_bytes", "seconds", "steps", "tokens")}
    return {"asked": asked, "activation_checkpointing": found.checkpointing, "estimate": figures}


def _settled(tune: Finetune, kept: dict[str, Any]) -> Finetune:
    """A training's settings, with what was left to memory as that decided it."""
    if tune.activation_checkpointing != "auto":
        return tune
    return tune.model_copy(update={"activation_checkpointing": kept["activation_checkpointing"]})
