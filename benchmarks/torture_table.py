"""What `make torture` kept, as a part of docs/reliability.md."""

import sys
from pathlib import Path
from typing import Any

from words import measured

sys.path.append(str(Path(__file__).parents[1] / "tests" / "torture"))
from harness import harness

EARLIER = " †"
"""Beside what other trials than today's came to; no page is out of date for it."""
READ = ("X1-source",)
"""What reads our own source, file by file, and tries nothing."""


def tortured(result: dict[str, Any]) -> str:
    """A line for each test: what was tried, what held, what failed in silence, and the same of the peer."""
    ours = [found["tunesmith"] for found in result.values() if "tunesmith" in found]
    lines = [
        "| test | holds | trials | held | failed in silence | at most (95 %) | TRL: held | in silence |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    order = {kind: place for place, kind in enumerate("RDX")}
    for one in sorted(ours, key=lambda one: (order[one["id"][0]], int(one["id"][1:].split("-")[0]), one["id"])):
        peer = result[one["id"]].get("trl")
        beside = f"{peer['passes']} of {peer['total']}{earlier(peer)} | {peer['silent']}" if peer else " | "
        figures = f"{one['total']} | {one['passes']} | {one['silent']} | {100 * one['silent_at_most']:.1f} %"
        lines.append(f"| {one['id']} | {one['title']}{earlier(one)} | {figures} | {beside} |")
    tried = [one for one in ours if one["id"] not in READ]
    total, silent = sum(one["total"] for one in tried), sum(one["silent"] for one in tried)
    without = ", ".join(one["id"] for one in ours if one["id"] in READ)
    uncounted = f" ({without} reads the source and is not counted)" if without else ""
    return "\n".join(
        [
            f"Silent failures: **{silent}** in {total:,} trials{uncounted}. Where a row has a dagger (†), its trials are of earlier programs than today's.",
            "",
            *lines,
            "",
            *gaps(result),
            where(result),
        ]
    )


def earlier(one: dict[str, Any]) -> str:
    """The mark of what other trials than today's came to."""
    return "" if one.get("harness") == harness() else EARLIER


def gaps(result: dict[str, Any]) -> list[str]:
    """The line of R13's gaps."""
    found = [
        f"{one['trial'].removesuffix(': logits')} {one['reason'].removeprefix('largest gap ')}"
        for one in result.get("R13", {}).get("tunesmith", {}).get("trials", ())
        if one["trial"].endswith(": logits")
    ]
    return [f"Largest gaps of a logit at full precision (R13): {', '.join(found)}.", ""] if found else []


def where(result: dict[str, Any]) -> str:
    """Where and when, and with what on the other side."""
    ours = [one["tunesmith"] for one in result.values() if "tunesmith" in one]
    said = f"Measured on {measured(*ours)} (`make torture`)."
    asked = [one["trl"] for one in result.values() if "trl" in one.get("trl", {}).get("environment", ())]
    if not asked:
        return said
    peer = max(asked, key=lambda one: one["date"])["environment"]
    versions = ", ".join(f"{name} {peer[name]}" for name in ("trl", "transformers", "peft", "torch"))
    return f"{said} The other side: {versions}."
