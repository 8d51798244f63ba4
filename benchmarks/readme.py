"""Writes the figures of committed results into the README and the pages that state them, between their marks: `python benchmarks/readme.py [--check]`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import choices_table as choices
import comparisons_table as comparisons
import methods_table as methods
import torture_table as torture
from words import measured, minutes

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
STAGES, SERVING = ROOT / "docs" / "stages", ROOT / "docs" / "serving.md"
PREPARE, SEARCH, FINETUNE = STAGES / "prepare.md", STAGES / "search.md", STAGES / "finetune.md"
METHODS, DATA_CURVE = ROOT / "docs" / "methods.md", ROOT / "docs" / "data-curve.md"
RELIABILITY, NOTES = ROOT / "docs" / "reliability.md", ROOT / "docs" / "lab-notes.md"
SHOWDOWN, MERGING, PERFORMANCE = (ROOT / "docs" / f"{name}.md" for name in ("showdown", "merging", "performance"))
ALL = {"speed": "."}
"""Parts that take several results, and the folder of these."""


def first_run(result: dict[str, Any]) -> str:
    """What the two commands take, and what came out."""
    quick, test = result["quickstart"], result["test"]
    found, stages = quick["evaluated"], quick["seconds"]
    tuned, svm = (found["systems"][name] for name in ("tuned", "svm"))
    gain = found["differences"]["tuned - svm"]
    spent = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in stages.items() if seconds and seconds >= 1)
    return f"""| command | setting up | running | disk space |
|---|---|---|---|
| `make quickstart` | {minutes(quick["install_seconds"])} | {minutes(quick["run_seconds"])} | {quick["megabytes"]:,} MB |
| `make test`, after it | counted as running | {minutes(test["seconds"])} | {test["megabytes"]:,} MB |

The quickstart's model gets {tuned["value"]:.1f} % of the attributes right (95 % interval {tuned["low"]:.1f} to {tuned["high"]:.1f}), an SVM trained on the same rows
{svm["value"]:.1f} %: {gain["value"]:.1f} points more (interval {gain["low"]:+.1f} to {gain["high"]:+.1f}). Its time: {spent}.
Measured on {measured(result)} (`python benchmarks/first_run.py`)."""


TITLES = {
    "lora": "LoRA, a step",
    "int8": "LoRA on a base in int8, a step",
    "full": "full, a step",
    "dora": "DoRA, a step",
    "fp32": "LoRA in float32, a step",
    "dpo": "DPO with LoRA, a step, reference included",
    "hybrid": "LoRA by SGD, a step",
    "hybrid in float32": "LoRA by SGD in float32, a step",
    "grpo": "GRPO with LoRA, a step of 8 answers of 64 tokens",
    "one": "one answer",
    "sixteen": "16 answers together",
    "sixty-four": "64 answers together",
    "one in int8": "one answer, weights in int8",
    "sixteen in int8": "16 answers together, weights in int8",
    "one in nf4": "one answer, weights in four bits",
    "sixteen in nf4": "16 answers together, weights in four bits",
    "two-hundred": "prepare 200 rows",
    "thousand": "prepare 1,000 rows",
    "ten-thousand": "prepare 10,000 rows",
    "hundred-thousand": "prepare 100,000 rows",
}


def against(result: dict[str, Any]) -> str:
    """A line for each work and contender."""
    works = {name: result["works"][name] for name in TITLES if name in result["works"]}
    lines = ["| work | against | times as fast | memory |", "|---|---|---|---|"]
    for name, work in works.items():
        for contender, figures in list(work["median"].items())[1:]:
            faster, memory = figures["tunesmith_is_faster"], figures["tunesmith_memory"]
            lines.append(f"| {TITLES[name]} | {contender} | {faster:.1f} | {memory:.2f} |")
    last = sorted(works.values(), key=lambda work: str(work["date"]))[-1]
    limits = [one["bf16_product_limit"] / 1e9 for work in works.values() for one in work["rounds"]]
    peer = ", ".join(f"{name} {number}" for name, number in last["peer"].items())
    rounds = ", ".join(f"{name} {len(work['rounds'])}" for name, work in works.items())
    return "\n".join(
        [
            *lines,
            "",
            f"Measured on {measured(*works.values())}; bf16 products reached {min(limits):.0f} to {max(limits):.0f} GFLOP/s there, by round. The other side: {peer}. Rounds: {rounds}.",
        ]
    )


FASTEST = {
    "training": {
        "lora": ("TRL default", "TRL best", "TRL best, malloc tuned"), "full": ("TRL best",), "dpo": ("TRL best",), "grpo": ("TRL best",)
    },
    "generation": {"sixteen": ("transformers",)},
    "prepare": {"thousand": ("TRL default",)},
}  # fmt: skip
"""What of the tables on the page of how fast it is the README shows."""


def fastest(results: dict[str, Any]) -> str:
    """A line for each work and contender that is told first."""
    lines, shown = ["| work | against | times as fast | memory |", "|---|---|--:|--:|"], []
    for name, works in FASTEST.items():
        for work, contenders in works.items():
            found = results[name]["works"][work]
            shown.append(found)
            for contender in contenders:
                figures = found["median"][contender]
                ratios = f"{figures['tunesmith_is_faster']:.1f} | {figures['tunesmith_memory']:.2f}"
                lines.append(f"| {TITLES[work]} | {contender} | {ratios} |")
    return "\n".join([*lines, "", f"Measured on {measured(*shown)} (`make bench`)."])


def planned(result: dict[str, Any]) -> str:
    """What was said beside what was seen."""
    lines = ["| training | planned | seen | error |", "|---|---|---|---|"]
    for work in result["works"].values():
        sizes = f"{work['planned_bytes'] / 1e6:,.0f} MB | {work['seen_bytes'] / 1e6:,.0f} MB"
        lines.append(f"| {work['title']} | {sizes} | {100 * work['memory_error']:+.0f} % |")
    place = measured(*result["works"].values())
    return "\n".join([*lines, "", f"Measured on {place}, in one thread (`python benchmarks/plan.py`)."])


def spent(result: dict[str, Any]) -> str:
    """The share of each kind of operation in a step."""
    works = result["works"]
    kinds = list(next(iter(works.values()))["shares"])
    kinds += sorted({kind for work in works.values() for kind in work["shares"]} - set(kinds))
    lines = [f"| a step of | {' | '.join(kinds)} |", "|---|" + "--:|" * len(kinds)]
    for name, work in works.items():
        shares = " | ".join(f"{100 * work['shares'].get(kind, 0.0):.0f} %" for kind in kinds)
        lines.append(f"| {TITLES[name].removesuffix(', a step')} | {shares} |")
    return "\n".join([*lines, "", f"Measured on {measured(*works.values())} (`python benchmarks/profiles.py`)."])


def saved(result: dict[str, Any]) -> str:
    """What each way of saving memory leaves of it, and takes in time."""
    lines = ["| training | way | peak | memory | time |", "|---|---|---|---|---|"]
    for name, work in result["works"].items():
        for way, figures in list(work["median"].items())[1:]:
            ratios = f"{figures['memory']:.2f} | {figures['time']:.2f}"
            lines.append(f"| {TITLES[name].split(',')[0]} | {way} | {figures['training_peak_mb']:,.0f} MB | {ratios} |")
    place = measured(*result["works"].values())
    return "\n".join([*lines, "", f"Ratios to the plain step. Measured on {place} (`python benchmarks/memory.py`)."])


def served(result: dict[str, Any]) -> str:
    """A line for each number of clients and server."""
    lines = ["| clients | server | tokens a second | tunesmith is faster |", "|---|---|---|---|"]
    for name, work in result["works"].items():
        for server, figures in work["median"].items():
            faster = "" if server == "tunesmith" else f"{figures['tunesmith_is_faster']:.1f} times"
            lines.append(f"| {name} | {server} | {figures['tokens_per_second']:.0f} | {faster} |")
    works = list(result["works"].values())
    place, count = measured(*works), len(works[-1]["rounds"])
    return "\n".join([*lines, "", f"Measured on {place}, {count} round (`python benchmarks/serving.py`)."])


def compared(result: dict[str, Any]) -> str:
    """The table of methods, and what of it is not measured."""
    fewer = ", ".join(
        f"{name} {len(found['runs'])}" for name, found in sorted(result.items()) if len(found["runs"]) < 3
    )
    note = f" Fewer than three seeds: {fewer}." if fewer else ""
    unknown = sorted(f"`{path.stem}`" for path in methods.RECIPES.glob("*.yaml") if path.stem not in result)
    note += f" Not measured yet: {', '.join(unknown)}." if unknown else ""
    beside = f"With and without a base that moves by forward passes, and prompts beside LoRA, all by SGD:\n\n{methods.pairs(result)}"
    return f"{methods.table(result)}\n\n{beside}\n\n{methods.provenance(result)}{note}"


def scaled(result: dict[str, Any]) -> str:
    """What each axis does to a step."""
    lines = ["| | tokens a second | of the bf16 limit | peak |", "|---|--:|--:|--:|"]
    for axis, work in result["works"].items():
        for point in work["points"]:
            share, peak = f"{100 * point['share_of_limit']:.0f} %", f"{point['peak_mb']:,.0f} MB"
            lines.append(f"| {axis} {point['point'][axis]} | x {point['relative']:.2f} | {share} | {peak} |")
    place = measured(*result["works"].values())
    counts = ", ".join(f"{axis} {len(work['rounds'])}" for axis, work in result["works"].items())
    return "\n".join([*lines, "", f"Measured on {place}; rounds: {counts} (`python benchmarks/scaling.py`)."])


def recalled(result: dict[str, Any]) -> str:
    """A line for each way to learn facts."""
    lines = ["| adapter | codes recalled | general perplexity | experts that learnt | steps |", "|---|--:|--:|--:|--:|"]
    for name, runs in result["works"].items():
        right = ", ".join(f"{run['recalled']} of {run['facts']}" for run in runs)
        rises = ", ".join(f"{100 * run['rise']:+.3g} %" for run in runs)
        learnt = ", ".join(f"{run['experts_learnt']} of {run['experts']}" for run in runs if run["experts"])
        lines.append(f"| `{name}` | {right} | {rises} | {learnt} | {', '.join(str(run['steps']) for run in runs)} |")
    return "\n".join([*lines, "", f"Of each seed; measured on {measured(result)} (`python benchmarks/recall.py`)."])


FIGURES: dict[str, tuple[Path, Callable[[dict[str, Any]], str]]] = {
    "first_run": (README, first_run),
    "speed": (README, fastest),
    "training": (PERFORMANCE, against),
    "generation": (PERFORMANCE, against),
    "prepare": (PERFORMANCE, against),
    "plan": (FINETUNE, planned),
    "memory": (FINETUNE, saved),
    "serving": (SERVING, served),
    "scaling": (FINETUNE, scaled),
    "methods": (METHODS, compared),
    "recall": (METHODS, recalled),
    "data_curve": (DATA_CURVE, choices.debtags),
    "data_curve_translation": (DATA_CURVE, choices.translation),
    "search": (SEARCH, choices.searched),
    "selection": (PREPARE, choices.selected),
    "torture": (RELIABILITY, torture.tortured),
    "profiles": (NOTES, spent),
    "showdown": (SHOWDOWN, comparisons.raced),
    "balance": (FINETUNE, comparisons.balanced),
    "merging": (MERGING, comparisons.merged),
}


def written(page: Path, text: str) -> str:
    """A page with every marked part brought up to date."""
    for name, (place, write) in FIGURES.items():
        result = kept(RESULTS / ALL.get(name, name))
        if place != page or not result:
            continue
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, rest = text.split(start)
        text = before + start + write(result) + end + rest.split(end)[1]
    return text


def kept(path: Path) -> dict[str, Any]:
    """A result: a file's, or by name those of a folder's files."""
    if path.is_dir():
        return {file.stem: json.loads(file.read_text()) for file in sorted(path.glob("*.json"))}
    file = path.with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def main() -> None:
    """Write, or say what is out of date."""
    for page in dict.fromkeys(page for page, _ in FIGURES.values()):
        before = page.read_text()
        after = written(page, before)
        if "--check" not in sys.argv:
            page.write_text(after)
        elif before.replace(torture.EARLIER, "") != after.replace(torture.EARLIER, ""):
            raise SystemExit(
                f"{page.name} does not hold the committed results' figures; run: python benchmarks/readme.py"
            )
        elif count := after.count(f"{torture.EARLIER} |"):
            print(f"{page.name}: {count} results are of earlier trials; `make torture` makes them anew")


if __name__ == "__main__":
    main()
