"""What `data_curve.py`, `search.py` and `selection.py` measured, as parts of docs/data-curve.md, docs/stages/search.md and docs/stages/prepare.md."""

import re
from collections.abc import Iterator
from typing import Any

from comparisons_table import varied
from words import called, measured, spoken


def curved(result: dict[str, Any], name: str, title: str, command: str) -> str:
    """The figure, the score at each size and what they foretell."""
    from tunesmith.stages.curve import text

    lines = [f"![{title}, over rows learnt from]({name}.svg)", "", *text.table(result)]
    if others := [each for each in result["figures"][1:] if each["summary"]]:
        sizes = [f"{point['size']:,}" for point in others[0]["points"]]
        lines += ["", f"| rows | {' | '.join(sizes)} |", "|---|" + "--:|" * len(sizes)]
        for each in others:
            values = " | ".join(f"{point['value']:.1f}" for point in each["points"])
            lines.append(f"| {called(each)} | {values} |")
    lines += ["", *(f"* {line}" for line in (*text.beside(result), *text.sentences(result)))]
    if gains := text.gains(result):
        brought = ", ".join(f"{one['name']} {one['gained']['value']:+.1f}" for one in gains[:5])
        lines.append(f"* what the last doubling brought most: {brought}")
    if published := result["published"]:
        said = ", ".join(f"{value:.0f} % with {size} rows" for size, value in published["points"].items())
        lines.append(f"* published of {published['task']} ({published['source']}): {said}; {published['said']}")
    return "\n".join([*lines, "", f"Measured on {measured(result)} (`{command}`)."])


def debtags(result: dict[str, Any]) -> str:
    """Attributes of packages."""
    return curved(result, "data-curve", "The share of attributes that are right", "python benchmarks/data_curve.py")


def translation(result: dict[str, Any]) -> str:
    """Messages of programs."""
    command = "python benchmarks/data_curve.py --work translation"
    return curved(result, "data-curve-translation", "chrF++ of translations", command)


def audited(result: dict[str, Any]) -> Iterator[str]:
    """Whether early scores could be trusted, and what was gained on the test split, line by line."""
    from tunesmith.stages.search.table import trusted

    paper = result["paper"]
    for sampler, trust in result["trust"].items():
        for mark, each in trust.items():
            yield f"{sampler}: {trusted(mark, each)}"
    yield f"the paper ({paper['source']}): at 20 % {paper['stayed of the top 5']} of the best 5 stayed; of how many trials is not said"
    for name in ("gain over the recipe's own settings", "gain over random search with as many trials"):
        yield f"{name}: {spoken(result[name], '+')}, p {result[name]['p']:.3f}"
    cost = ", ".join(f"{sampler} {each['tokens']:,}" for sampler, each in result["cost"].items())
    yield f"tokens trained on: {cost}; the first {result['shared']} trials of both are the same"
    yield f"the paper: {paper['gain on its test set, points']:+.1f} points on its test set, without an interval"


def searched(result: dict[str, Any]) -> str:
    """The test scores of what the searches chose, and how far early scores could be trusted."""
    lines = [
        "![Scores of trials at the end of their training, by those at a fifth of it](../search.svg)", "",
        f"| settings | trial | {result['grader']}, {result['unit']}, {result['rows']} test rows |", "|---|--:|--:|",
    ]  # fmt: skip
    lines += [f"| {name} | {each['trial'][1]} | {spoken(each)} |" for name, each in result["test"].items()]
    lines += ["", *(f"* {line}" for line in audited(result)), ""]
    end = f"{result['trials']} trials each, all trained to the end; one search each, so another seed may order them otherwise."
    return "\n".join([*lines, f"{end} Measured on {measured(result)} (`python benchmarks/search.py`)."])


def selected(result: dict[str, Any]) -> str:
    """Ways to choose rows, each called by what it does not share with the others."""
    lines = [
        re.sub(r"^\| select=\{kind: (.+), size: \d+\} \|", r"| `\1` |", line)
        for line in varied(result, f"{result['size']} rows", "`random`")
    ]
    end = f"Measured on {measured(result)} (`python benchmarks/selection.py`)."
    return "\n".join(
        [
            *lines,
            "",
            f"Rows with each attribute, of those that the first seed chose: {'; '.join(had(result))}.",
            "",
            end,
        ]
    )


def had(result: dict[str, Any]) -> Iterator[str]:
    """What the rows of each way are of."""
    for name, seeds in result["chosen"].items():
        called = re.sub(r"^select=\{kind: (.+), size: \d+\}$", r"\1", name).replace("as given", "random")
        counts = seeds[0]["attributes"]
        yield f"`{called}` {', '.join(f'{each} {count}' for each, count in counts.items())}, {sum(counts.values()) / seeds[0]['rows']:.1f} a row"
