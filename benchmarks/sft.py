"""LoRA SFT against TRL: contenders take turns in processes of their own; prints a table and writes JSON.

    python benchmarks/sft.py --peer .venv-trl/bin/python [--rounds 2] [--steps 8] [--out benchmarks/results/sft.json]

`make bench` sets up the peer's environment and runs this. Only ratios within a round mean something on a shared machine: the table
shows medians over rounds.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.artifact import environment
from tunesmith.models.load import locate

HERE = Path(__file__).parent / "contenders"
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""What an expert sets to keep glibc from handing pages back."""


def contenders(peer: str, model: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> command and environment."""
    ours, trl = [sys.executable, str(HERE / "ours.py")], [peer, str(HERE / "trl_sft.py"), "--model", model]
    return {
        "tunesmith": (ours, {}),
        "TRL default": (trl, {}),
        "TRL best": ([*trl, "--best"], {}),
        "TRL best, malloc tuned": ([*trl, "--best"], MALLOC),
        "tunesmith, transformers' layers": ([*ours, "--generic"], {}),
    }


def run(command: list[str], extra: dict[str, str], steps: int) -> dict[str, Any]:
    """One process's figures."""
    done = subprocess.run(
        [*command, "--steps", str(steps)], capture_output=True, text=True, env={**os.environ, **extra}, check=False
    )
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


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="the python of an environment with TRL and PEFT")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sft.json"))
    given = parser.parse_args()
    every = contenders(given.peer, str(locate("smollm2-135m")))
    rounds: list[dict[str, Any]] = []
    for number in range(given.rounds):
        limit = product_limit()
        found = {}
        for name, (command, extra) in every.items():
            found[name] = run(command, extra, given.steps)
            print(f"round {number + 1}  {name:34s} {found[name]['tokens_per_second']:7.0f} tokens/s", flush=True)
        rounds.append({"bf16_product_limit": limit, "contenders": found})
    result = {"date": datetime.date.today().isoformat(), "environment": environment(), "peer": versions(given.peer)}
    result |= {"median": summary(rounds), "rounds": rounds}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["median"], indent=1))


def versions(peer: str) -> dict[str, str]:
    """What the peer's environment holds."""
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('torch', 'transformers', 'trl', 'peft')}))"
    found: dict[str, str] = json.loads(
        subprocess.run([peer, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and how many times each contender's figure goes into tunesmith's of the same round."""
    found = {}
    for name in rounds[0]["contenders"]:
        mine = [one["contenders"][name] for one in rounds]
        ours = [one["contenders"]["tunesmith"] for one in rounds]
        pairs = list(zip(ours, mine, strict=True))
        found[name] = {
            "tokens_per_second": statistics.median(one["tokens_per_second"] for one in mine),
            "tokens_per_cpu_second": statistics.median(one["tokens_per_cpu_second"] for one in mine),
            "peak_rss_mb": statistics.median(one["peak_rss_mb"] for one in mine),
            "seconds_to_first_step": statistics.median(one["seconds_to_first_step"] for one in mine),
            "tunesmith_is_faster": statistics.median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs),
            "tunesmith_memory": statistics.median(a["peak_rss_mb"] / b["peak_rss_mb"] for a, b in pairs),
        }
    return found


if __name__ == "__main__":
    main()
