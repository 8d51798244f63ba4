"""What saves memory and what it costs in time: layers computed again, moments in a file; and what a base takes that moves beside its adapter. Each against the plain run in turn; `make bench`, or

python benchmarks/memory.py [--rounds 2] [--work lora full hybrid]
"""

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from rounds import OURS, RESULTS, Contender

from tunesmith.base.artifact import environment
from tunesmith.models.load import locate

STEPS = ("--steps", "6")
WORKS = {
    "lora": {
        OURS: Contender("ours.py", STEPS),
        "layers computed again": Contender("ours.py", (*STEPS, "--checkpointing")),
    },
    "full": {
        OURS: Contender("ours.py", (*STEPS, "--full")),
        "layers computed again": Contender("ours.py", (*STEPS, "--full", "--checkpointing")),
        "moments in a file": Contender("ours.py", (*STEPS, "--full", "--offload")),
        "both": Contender("ours.py", (*STEPS, "--full", "--checkpointing", "--offload")),
    },
    "hybrid": {
        OURS: Contender("ours.py", (*STEPS, "--optimizer", "sgd")),
        "the base moves too": Contender("ours.py", (*STEPS, "--optimizer", "hybrid")),
    },
    "hybrid in float32": {
        OURS: Contender("ours.py", (*STEPS, "--fp32", "--optimizer", "sgd")),
        "the base moves too": Contender("ours.py", (*STEPS, "--fp32", "--optimizer", "hybrid")),
    },
}


def compared(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of each way: its memory, and medians of ratios with the plain one of the same round."""
    found = {}
    for name in rounds[0]:
        pairs = [(one[OURS], one[name]) for one in rounds]
        found[name] = {
            "training_peak_mb": statistics.median(own["training_peak_mb"] for _, own in pairs),
            "loading_peak_mb": statistics.median(own["loading_peak_mb"] for _, own in pairs),
            "memory": statistics.median(own["training_peak_mb"] / plain["training_peak_mb"] for plain, own in pairs),
            "time": statistics.median(plain["tokens_per_second"] / own["tokens_per_second"] for plain, own in pairs),
            "cpu_time": statistics.median(
                plain["tokens_per_cpu_second"] / own["tokens_per_cpu_second"] for plain, own in pairs
            ),
            "same_losses": all(plain["losses"] == own["losses"] for plain, own in pairs),
        }
    return found


def main() -> None:
    """Run rounds and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", choices=list(WORKS), nargs="*", default=list(WORKS))
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    given = parser.parse_args()
    model = locate("smollm2-135m")
    kept = json.loads(given.out.read_text())["works"] if given.out.exists() else {}
    for work in given.work:
        rounds = [{name: each.run("", model) for name, each in WORKS[work].items()} for _ in range(given.rounds)]
        stamp = {"date": datetime.date.today().isoformat(), "environment": environment()}
        kept[work] = {**stamp, "median": compared(rounds), "rounds": rounds}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"works": kept}, indent=1) + "\n")
        print(work, json.dumps(kept[work]["median"], indent=1), flush=True)


if __name__ == "__main__":
    main()
