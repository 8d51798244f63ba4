"""What went in and what was done: data, method, proof, lineage, and what it took against what was estimated."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from . import words
from .source import Source

SHOWN_ROWS = 50
"""Rows listed that were not used as they are."""
SPLITS = ("train", "validation", "test")


def data(source: Source) -> dict[str, Any] | None:
    """The prepared data; None before there is any."""
    prepared, summary = source.artifacts.get("prepare"), source.json("prepare", "summary.json")
    if prepared is None or summary is None:
        return None
    with (prepared / "ledger.jsonl").open(encoding="utf-8") as file:
        unused = (entry for entry in map(json.loads, file) if entry["state"] in ("truncated", "quarantined"))
        odd = [{**entry, "origin": short(entry["origin"])} for entry in islice(unused, SHOWN_ROWS)]
    return {
        **summary,
        "odd": odd,
        "split_by": split_by(prepared.manifest["spec"], prepared.manifest["context"]["seed"]),
        "selection": selected_by(summary.get("selection")),
        "facts": {name.replace("_", " "): _facts(found) for name, found in summary["cleaners"].items()},
        "sources": [{**found, "name": short(found["path"])} for found in summary["sources"]],
    }


def _facts(found: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name.replace("_", " "): value for name, value in found.items() if not isinstance(value, list)}
    return {"counts": counts, "named": [words.plain(value) for name in found for value in _listed(found[name])]}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def split_by(spec: Mapping[str, Any], seed: int) -> list[str]:
    """How rows came to be on their side, in sentences."""
    sentences = []
    for side in ("test", "validation"):
        if spec[side]:
            limit = f"the first {spec[f'{side}_rows']:,} rows of " if spec[f"{side}_rows"] else ""
            sentences.append(f"{side.capitalize()} rows are {limit}a file of their own, {short(str(spec[side]))}.")
        elif spec[f"{side}_fraction"]:
            sentences.append(
                f"{side.capitalize()} rows are {words.fraction(spec[f'{side}_fraction'])} of the source, taken by a hash of what they say (seed {seed})."
            )
    if spec["rows"]:
        sentences.append(f"Only the first {spec['rows']:,} rows of the source were taken.")
    if spec["stratify"]:
        sentences.append(f"Each side has the same proportions of {spec['stratify']}.")
    together = f"have the same {spec['group']} or ask" if spec["group"] else "ask"
    return [*sentences, f"Rows that {together} the same are never on two sides."]


def selected_by(found: Mapping[str, Any] | None) -> str | None:
    """How the rows to learn from were chosen among more, in a sentence; None where all are learnt from."""
    if not found:
        return None
    how = {name.replace("_", " "): value for name, value in found.items() if name not in ("kind", "rows", "of")}
    about = f" ({words.plain(how)})" if how else ""
    return f"{found['rows']:,} of {found['of']:,} rows were chosen to learn from, by {found['kind']}{about}."


def method(source: Source) -> dict[str, Any] | None:
    """The settings that matter and what the model is; None before a recipe is known."""
    recipe = source.recipe
    if not recipe:
        return None
    settings = {"model": recipe.get("model", words.NONE), "seed": words.plain(recipe.get("seed"))}
    if "initialise" in recipe:
        settings["adapter"] = words.plain(recipe["initialise"]["adapter"])
    for name, value in recipe.get("finetune", {}).items():
        settings[name.replace("_", " ")] = words.plain(value)
    overrides = (source.json("search", "settings.json") or {}).get("overrides") or {}
    text = source.recipe_path.read_text(encoding="utf-8") if source.recipe_path.exists() else None
    return {"settings": settings, "found": words.plain(overrides) if overrides else None, "recipe": text}


def model(source: Source) -> dict[str, Any] | None:
    """What was loaded."""
    found: dict[str, Any] | None = source.json("initialise", "model.json")
    return found


STATES = {"before": "before pruning", "pruned": "after pruning", "recovered": "after recovery"}
"""What the states of a pruned model are called."""


def pruned(source: Source) -> dict[str, Any] | None:
    """What pruning took and saved; None where nothing was pruned."""
    found = source.artifacts.get("prune")
    if found is None or found.metrics["kind"] == "none":
        return None
    perplexity = found.metrics["perplexity"]
    states = [{"name": name, **perplexity[state]} for state, name in STATES.items() if state in perplexity]
    return {**found.metrics, "method": words.plain(found.manifest["spec"]["method"]), "states": states}


def proofs(source: Source) -> list[dict[str, Any]]:
    """Every claim of every stage with its figures as text."""
    return [
        {"stage": stage, "claim": claim["claim"], "holds": claim["holds"], "figures": _figures(claim)}
        for stage in source.stages
        for claim in source.proof(stage)
    ]


def _figures(claim: Mapping[str, Any]) -> str:
    return words.plain({name: value for name, value in claim.items() if name not in ("claim", "holds")})


def lineage(source: Source) -> list[dict[str, Any]]:
    """Every stage with its state, folder, content hash and parents."""
    found = []
    for stage in source.stages:
        state, artifact = source.states.get(stage), source.artifacts.get(stage)
        parents = artifact.manifest["parents"] if artifact else []
        found.append({
            "stage": stage,
            "state": _state(source, stage),
            "later": stage in source.retried,
            "folder": artifact.path.name if artifact else state["artifact"] if state else None,
            "hash": artifact.id[:12] if artifact else None,
            "parents": [parent["folder"] for parent in parents],
            "inputs": [entry["name"] for entry in artifact.manifest["inputs"]] if artifact else [],
            "seconds": artifact.manifest["seconds"] if artifact else None,
            "created": words.moment(artifact.manifest["created"]) if artifact else None,
            "error": state.get("error") if state else None,
        })  # fmt: skip
    return found


def _state(source: Source, stage: str) -> str:
    state = str(source.states.get(stage, {}).get("state", "not there yet"))
    if state != "done":
        return state
    return "damaged" if stage not in source.artifacts else "outdated" if stage in source.outdated else state


def cost(source: Source) -> dict[str, Any]:
    """What it took: time of each stage, tokens, speed, memory, and on what."""
    made = [artifact.manifest for artifact in source.artifacts.values()]
    trained = source.artifacts.get("finetune")
    newest = max(made, key=lambda manifest: manifest["created"], default=None)
    return {
        "seconds": sum(manifest["seconds"] for manifest in made) if made else None,
        "training": trained.metrics if trained else None,
        "machine": (trained.manifest if trained else newest or {"environment": {}})["environment"],
        "created": words.moment(newest["created"]) if newest else None,
        "compared": _compared(source.plan, trained.metrics)
        if source.plan and trained and "finetune" not in source.retried
        else [],
        "planned": source.plan,
    }


def _compared(plan: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Estimate against measurement, for what was estimated."""
    lines = (
        ("time of the training steps", "seconds", measured["step_seconds"], words.duration),
        ("peak memory", "peak_bytes", measured["peak_memory_mb"] * 2**20, words.size),
        ("tokens", "tokens", measured["tokens"], words.plain),
        ("steps", "steps", measured["steps"], words.plain),
    )
    return [
        {
            "name": name,
            "estimate": write(plan[key]),
            "measured": write(value),
            "ratio": value / plan[key] if plan[key] else None,
        }
        for name, key, value, write in lines
        if plan.get(key) is not None
    ]


def short(place: str | Iterable[str]) -> str:
    """File names without their folders, line numbers kept."""
    return Path(place).name if isinstance(place, str) else ", ".join(Path(part).name for part in place)
