"""What `benchmarks/comparisons.py` and `benchmarks/merging.py` measured, as the tables of docs/showdown.md, docs/stages/finetune.md and docs/merging.md."""

from typing import Any

from words import called, measured, minutes, spoken


def raced(result: dict[str, Any]) -> str:
    """A line for each road of the showdown: what it came to, and what it took."""
    from tunesmith.stages.report.showdown import facts

    found = facts(result)
    against, budget = found["against"], result["budget"]
    lines = [
        f"| road | {found['unit']} | against `{against}` | of the budget | time | memory | drift, nats a token |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for line in found["lines"]:
        gap = spoken(line["gap"], "+") if line["gap"] else ""
        lines.append(
            f"| `{line['name']}` | {spoken(line['figure'])} | {gap} | {100 * line['passes'] / budget:.0f} % | {minutes(line['seconds'])} | "
            f"{line['peak_memory_mb']:,.0f} MB | {spoken(line['drift'], digits=2)} |"
        )
    board = result["task"]["graders"][found["kind"]]["systems"]
    start = f"The start gets {spoken(board['start'])}, its base {spoken(board['base'])}."
    end = f"Measured on {measured(result)}, {result['minutes']:.0f} minutes in all (`python benchmarks/comparisons.py showdown`)."
    return "\n".join([*lines, "", start, end])


def varied(result: dict[str, Any], what: str, first: str) -> list[str]:
    """What `tunesmith compare` found: a line for each variant, the recipe's own first, with differences from it.

    Args:
        result: as `compare.json`.
        what: a variant is.
        first: what the recipe's own is called.
    """
    from tunesmith.stages.compare import GIVEN

    summaries = [one for one in result["figures"] if one["summary"]]
    chosen = [one for one in summaries if any(gap["low"] or gap["high"] for gap in one["differences"].values())]
    names = [called(one) for one in chosen]
    lines = [f"| {what} | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for variant in result["variants"]:
        name = variant["name"]
        cells = [
            spoken(one["values"][name]) + (f", {spoken(gap, '+')}" if (gap := one["differences"].get(name)) else "")
            for one in chosen
        ]
        lines.append(f"| {first if name == GIVEN else name} | {' | '.join(cells)} |")
    alike = [f"{called(one)} is {spoken(one['values'][GIVEN])} of all" for one in summaries if one not in chosen]
    return [*lines, "", "; ".join(alike) + "."] if alike else lines


def balanced(result: dict[str, Any]) -> str:
    """Ways to learn rare classes."""
    end = f"Measured on {measured(result)}, {result['minutes']:.0f} minutes in all (`python benchmarks/comparisons.py balance`)."
    return "\n".join([*varied(result, "way", "rows as they are"), "", end])


def merged(result: dict[str, Any]) -> str:
    """A line for each way to merge, after the base and each task's own model."""
    tasks = result["tasks"]
    heads = [head for task in tasks for head in (f"{task} ({result['units'][task]})", "against its own")]
    lines = [f"| | {' | '.join(heads)} | kept of the sum |", "|---|" + "--:|" * (len(heads) + 1)]
    titles = {"base": "base", "own": "each task's own", "cat-whole": "`cat`, weights 1 and 1"}
    for name in next(iter(tasks.values())):
        cells = []
        for systems in tasks.values():
            more = systems[name]["more_than_own"]
            cells += [spoken(systems[name]), "" if name == "own" else spoken(more, "+")]
        share = f"{100 * min(result['kept'][name]):.0f} %" if name in result["kept"] else ""
        lines.append(f"| {titles.get(name, f'`{name}`')} | {' | '.join(cells)} | {share} |")
    seeds = f"Means over {len(result['seeds'])} seeds with 95 % intervals over rows and seeds; what is kept is that of the seed that keeps least."
    return "\n".join([*lines, "", f"{seeds} Measured on {measured(result)} (`python benchmarks/merging.py`)."])
