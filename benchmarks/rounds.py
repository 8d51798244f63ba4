"""What every comparison shares: contenders take turns in processes of their own, and only ratios within a round are compared."""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.artifact import environment
from tunesmith.models.load import locate

CONTENDERS = Path(__file__).parent / "contenders"
RESULTS = Path(__file__).parent / "results"
OURS = "tunesmith"


@dataclass(frozen=True)
class Contender:
    """A script that prints one line, `RESULT {json}`."""

    script: str
    arguments: tuple[str, ...] = ()
    peer: bool = False
    """Runs in the peer's environment."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of its own."""

    def run(self, peer: str, model: Path) -> dict[str, Any]:
        """Its figures."""
        python = peer if self.peer else sys.executable
        command = [python, str(CONTENDERS / self.script), "--model", str(model), *self.arguments]
        settings = {**os.environ, **self.variables}
        done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
        line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
        if line is None:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
        return found


def product_limit(seconds: float = 2.0) -> float:
    """Floating point operations a second in bf16 products of the model's shapes: the bound of any step here."""
    left, right = torch.randn(1400, 576).bfloat16(), torch.randn(576, 3072).bfloat16()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * 1400 * 576 * 3072 / best


def compare(works: dict[str, dict[str, Contender]], description: str, name: str) -> None:
    """Run rounds of every work that is asked for and keep `benchmarks/results/NAME.json`; the first contender is tunesmith."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peer", required=True, help="the python of an environment with TRL and PEFT")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", choices=list(works), nargs="*", default=list(works))
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    given = parser.parse_args()
    model = locate("smollm2-135m")
    kept = json.loads(given.out.read_text())["works"] if given.out.exists() else {}
    for work in given.work:
        rounds: list[dict[str, Any]] = []
        stamp = {"date": datetime.date.today().isoformat(), "environment": environment(), "peer": versions(given.peer)}
        while len(rounds) < given.rounds:  # one that is stopped keeps the rounds that it ended
            rounds.append(one_round(works[work], given.peer, model, f"{work}, round {len(rounds) + 1}"))
            kept[work] = {**stamp, "median": summary(rounds), "rounds": rounds}
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({"works": kept}, indent=1) + "\n")
        print(json.dumps(kept[work]["median"], indent=1))


def one_round(contenders: dict[str, Contender], peer: str, model: Path, title: str) -> dict[str, Any]:
    """Every contender once, and the machine's bound at the time."""
    found: dict[str, Any] = {"bf16_product_limit": product_limit(), "contenders": {}}
    for name, contender in contenders.items():
        mine = found["contenders"][name] = contender.run(peer, model)
        print(f"{title}  {name:34s} {mine['tokens_per_second']:8.1f} tokens/s {mine['peak_rss_mb']:6d} MB", flush=True)
    return found


def versions(peer: str) -> dict[str, str]:
    """What the peer's environment holds."""
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('torch', 'transformers', 'trl', 'peft')}))"
    found: dict[str, str] = json.loads(
        subprocess.run([peer, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and how each figure of tunesmith's compares with the contender's of the same round."""
    found: dict[str, Any] = {}
    for name in rounds[0]["contenders"]:
        pairs = [(one["contenders"][OURS], one["contenders"][name]) for one in rounds]
        numbers = [key for key, value in pairs[0][1].items() if isinstance(value, int | float)]
        found[name] = {key: statistics.median(theirs[key] for _, theirs in pairs) for key in numbers}
        found[name]["tunesmith_is_faster"] = statistics.median(
            ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in pairs
        )
        if "operations_per_second" in found[name]:
            found[name]["share_of_limit"] = statistics.median(
                theirs["operations_per_second"] / one["bf16_product_limit"]
                for (_, theirs), one in zip(pairs, rounds, strict=True)
            )
        found[name]["tunesmith_memory"] = statistics.median(
            ours["peak_rss_mb"] / theirs["peak_rss_mb"] for ours, theirs in pairs
        )
    return found
