"""What `benchmarks/methods.py` measured, as the tables of docs/methods.md."""

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from words import in_threads, measured, span

ROOT = Path(__file__).parents[1]
RECIPES, RESULTS = ROOT / "recipes" / "methods", ROOT / "benchmarks" / "results" / "methods"
BASE = "base"
"""The recipe that the others extend and are compared with."""
TEXT = "perplexity"
"""What is measured of a model of plain text, in the place of attributes: by how much it changed."""
PAIRED = (("hybrid", "sgd"), ("hybrid", "prompt-sgd"), ("prompt-hybrid", "prompt-sgd"), ("prompt-hybrid", "sgd"))
"""Recipes that are compared with another than the base."""


def kept(name: str) -> dict[str, Any]:
    """What is known of a recipe."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}
    return found


def keep(name: str, result: dict[str, Any]) -> None:
    """Write it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result) + "\n")


def title(name: str) -> str:
    """What the recipe's first line calls it."""
    return (RECIPES / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ").split(": ")[0]


Spreads = dict[str, Any]
"""By recipe; of one that is not there too little is known."""


def spreads(results: dict[str, dict[str, Any]]) -> tuple[Spreads, Spreads]:
    """How far each recipe's seeds lie apart, and what is left of that when what a seed does to all recipes is taken off, each drawn towards what all tell."""
    from tunesmith.grading.seeds import Spread, residuals, spread

    asked = [run["seed"] for run in results[BASE]["runs"]]
    measured = {name: each["runs"] for name, each in results.items() if not each["runs"][0].get("measure")}
    unknown = Spread(0.0, 0.0)
    alone = {name: spread([[one.point for one in figures(runs)]]) or unknown for name, runs in measured.items()}
    whole = {name: points for name, runs in measured.items() if (points := of_seeds(runs, asked))}
    rest = dict.fromkeys(measured, unknown)
    if len(asked) > 1 and len(whole) > 1:
        rest |= zip(whole, residuals(np.array(list(whole.values()))), strict=True)
    return drawn(alone), drawn(rest)


def drawn(known: Spreads) -> Spreads:
    """Each towards what all tell; of a single training it is that alone."""
    from tunesmith.grading.seeds import moderated

    found = zip(known, moderated(list(known.values())), strict=True)
    return {name: one for name, one in found if one.freedom}


def difference(name: str, other: str, results: dict[str, dict[str, Any]], rest: Spreads) -> str:
    """By how much one recipe is better than another on the same rows and seeds, with its 95 % interval."""
    from tunesmith.grading.seeds import over_seeds, together

    mine, theirs = beside(results[name]["runs"], results[other]["runs"])
    if not mine:
        return ""
    known = together(rest[name], rest[other]) if name in rest and other in rest else None
    apart = over_seeds(mine, theirs, apart=known)
    return f"{apart.value:+.1f} [{apart.low:+.1f}, {apart.high:+.1f}]"


def pairs(results: dict[str, dict[str, Any]]) -> str:
    """A line for each two recipes that differ in one more thing than from the base."""
    _, rest = spreads(results)
    lines = ["| recipe | against | score |", "|---|---|--:|"]
    for name, other in PAIRED:
        lines.append(f"| `{name}` | `{other}` | {difference(name, other, results, rest)} |")
    return "\n".join(lines)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line for each recipe, the base first; scores, and differences to it on the same rows and seeds, with 95 % intervals."""
    from tunesmith.grading.seeds import over_seeds
    from tunesmith.stages.recipe import read_recipe

    heads = ("method", "learns", "steps", "tokens/s", "memory", "loss", "score", "against LoRA", "general perplexity")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    alone, rest = spreads(results)
    rates = [each["cost"]["lora"]["rate"] for each in results.values() if "cost" in each]
    lora = statistics.median(rates) if rates else 0.0
    for name in (BASE, *sorted(results.keys() - {BASE}, key=lambda name: title(name).lower())):
        found, runs = results[name], results[name]["runs"]
        middle = {key: statistics.median(run[key] for run in runs) for key in ("steps", "peak_memory_mb", "loss")}
        measure = runs[0].get("measure")
        scored = over_seeds(figures(runs), apart=alone.get(name))
        against = "" if measure or name == BASE else difference(name, BASE, results, rest)
        reward = "reward " if read_recipe(RECIPES / f"{name}.yaml").finetune.rollouts else ""
        cost = found.get("cost")
        speed = f"{lora:,.0f}" if name == BASE and rates else ""
        if cost:
            speed = f"{lora * cost['method']['rate'] / cost['lora']['rate']:,.0f}"
        sign, of = ("+", f" % of {TEXT}") if measure == TEXT else ("", f" of {measure}" if measure else "")
        cells = (
            f"{title(name)} (`{name}`)",
            learns(runs), f"{middle['steps']:.0f}", speed, f"{middle['peak_memory_mb']:,.0f} MB", f"{reward}{middle['loss']:.3f}",
            f"{scored.value:{sign}.1f} [{scored.low:{sign}.1f}, {scored.high:{sign}.1f}]{of}", against,
            "" if measure == "pairs" else f"{forgotten(runs):+.1f} %",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def learns(runs: list[dict[str, Any]]) -> str:
    """How many weights learn, those that move by forward passes beside them, and those that learn again after pruning."""
    said = {"trainable": "{:,.0f}", "moved": " and {:,.0f} by estimate", "recovering": ", then {:,.0f}"}
    return "".join(
        words.format(statistics.median(run[key] for run in runs)) for key, words in said.items() if key in runs[0]
    )


def provenance(results: dict[str, dict[str, Any]]) -> str:
    """Where, when and in how many threads recipes were trained, and what is known of that of their speeds."""
    runs = [(name, run) for name, found in results.items() for run in found["runs"]]
    usual = Counter(run["threads"] for _, run in runs).most_common(1)[0][0]
    others = [
        f"`{name}` with seed {run['seed']} in {in_threads(run['threads'])}"
        for name, run in runs
        if run["threads"] != usual
    ]
    place, but = measured(*(run for _, run in runs)), f", but {', '.join(others)}" if others else ""
    text = f"Measured on {place}, each training in {in_threads(usual)}{but}."
    costs = [found["cost"] for found in results.values() if "cost" in found]
    noted = [cost for cost in costs if "threads" in cost]
    if noted:
        counts = " or ".join(map(in_threads, sorted({cost["threads"] for cost in noted})))
        text += f" Speeds: {len(noted)} on {measured(*noted)}, in {counts}."
    if bare := [cost for cost in costs if "threads" not in cost]:
        text += f" Speeds: {len(bare)} of {span(cost['date'] for cost in bare)}, without a note of machine and threads."
    return text


def figures(runs: list[dict[str, Any]]) -> list[Any]:
    """Percent of the things asked for that are right, of each run, as something that can be resampled; of models of text that by which perplexity changed."""
    from tunesmith.grading.statistics import Figure, share

    return [
        Figure(np.array(run["likelihoods"]), rise, least=-100.0)
        if run.get("measure") == TEXT
        else Figure(np.array([run["hits"], run["totals"]], dtype=float).T, share, top=100.0)
        for run in runs
    ]


def rise(sums: Any) -> Any:
    """Percent by which perplexity rose, from sums [..., 3] of losses before and after, in nats, and tokens."""
    before, after, tokens = np.moveaxis(np.asarray(sums), -1, 0)
    return 100 * (np.exp((after - before) / tokens) - 1)


def beside(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Figures of a recipe's runs and of the base's with the same seeds."""
    pairs = [(run, other) for run in runs for other in base if run["seed"] == other["seed"]]
    return figures([mine for mine, _ in pairs]), figures([other for _, other in pairs])


def of_seeds(runs: list[dict[str, Any]], seeds: list[int]) -> list[float]:
    """Scores with each of some seeds; none if one of them is missing."""
    known = {run["seed"]: one.point for run, one in zip(runs, figures(runs), strict=True)}
    return [known[seed] for seed in seeds] if known.keys() >= set(seeds) else []


def forgotten(runs: list[dict[str, Any]]) -> float:
    """Percent by which perplexity on the general rows rose, in the mean over runs."""
    return float(np.mean([rise(np.array(run["forgetting"]).sum(0)) for run in runs]))
