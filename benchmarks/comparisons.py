"""The two comparisons that the pages show, as committed results: roads with equal compute, and ways to learn rare classes.

    python benchmarks/comparisons.py showdown    # some 25 minutes on two cores
    python benchmarks/comparisons.py balance     # some two and a half hours

Each is a command that everybody has (`tunesmith showdown`, `tunesmith compare`), in a folder of `runs` that it goes on in if it was stopped.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunesmith.base import Events
from tunesmith.base.artifact import environment
from tunesmith.base.files import read_json

ROOT = Path(__file__).parents[1]
RESULTS, RUNS = ROOT / "benchmarks" / "results", ROOT / "runs"
VARIED = (
    "finetune.balance.power=0.5,0",
    "finetune.balance.weight=0.9,1",
    "finetune.objective.focus=2",
    "finetune.balance={power: 0, size: over} finetune.epochs=1.3",
    "finetune.balance={power: 0, size: under} finetune.epochs=26",
)
"""Ways to learn rare classes, as many steps each."""
SEEDS = 3


def tunesmith(*arguments: str) -> None:
    """Run the command, to be watched."""
    subprocess.run([sys.executable, "-c", "from tunesmith.cli import main; main()", *arguments], check=True, cwd=ROOT)


def showdown() -> dict[str, Any]:
    """What the page of the showdown shows, without the answers."""
    tunesmith("showdown", "recipes/showdown.yaml", "--run", str(RUNS / "showdown"))
    text = (RUNS / "showdown" / "results.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text.replace(str(RUNS.resolve()), RUNS.name))
    return found


def balance() -> dict[str, Any]:
    """Every figure of every way."""
    varied = [part for each in VARIED for part in ("--vary", each)]
    where = ("--run", str(RUNS / "balance"))
    tunesmith("compare", "recipes/balance.yaml", *where, "--seeds", str(SEEDS), *varied)
    found: dict[str, Any] = read_json(RUNS / "balance" / "compare.json")
    return found


def taken(folder: Path) -> float:
    """Minutes from the first event below a folder to the last, rests in between included."""
    times = [event["time"] for path in folder.rglob("events.jsonl") for event in Events(path).read()]
    return (max(times) - min(times)) / 60


def main() -> None:
    """Run one and keep what came out."""
    works = {"showdown": showdown, "balance": balance}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", choices=works)
    name = parser.parse_args().work
    told = {
        **works[name](),
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "minutes": taken(RUNS / name),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
