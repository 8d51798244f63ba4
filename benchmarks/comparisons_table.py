"""What `benchmarks/comparisons.py` measured, as the tables of docs/showdown.md and docs/stages/finetune.md."""

from typing import Any

from words import measured, minutes, spoken


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


def balanced(result: dict[str, Any]) -> str:
    """A line for each way to learn rare classes."""
    chosen = [one for one in result["figures"] if one["summary"]]
    names = [one["unit"] if one["name"] == "value" else f"{one['grader']}: {one['name']}" for one in chosen]
    lines = [f"| way | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for variant in result["variants"]:
        name = variant["name"]
        cells = [
            spoken(one["values"][name]) + (f", {spoken(gap, '+')}" if (gap := one["differences"].get(name)) else "")
            for one in chosen
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    end = f"Measured on {measured(result)}, {result['minutes']:.0f} minutes in all (`python benchmarks/comparisons.py balance`)."
    return "\n".join([*lines, "", end])
