"""How long `tunesmith` takes to say what it can do, and `tunesmith finetune` to end its first step, from the start of the process: `make bench`, or

python benchmarks/start.py [--repeats 5] [--out benchmarks/results/start.json]
"""

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tunesmith.base import Events
from tunesmith.base.artifact import environment

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from tunesmith.cli import main; main()"]
LIMIT = 300.0
"""Seconds after which a first step is not waited for any more."""


def helped() -> float:
    """Seconds of `tunesmith --help`."""
    start = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_step(prepared: Path, folder: Path) -> float:
    """Seconds from the start of `tunesmith finetune` to the end of its first step, rows being prepared and the start checked."""
    shutil.copytree(prepared, folder)
    start, now = time.time(), time.perf_counter()
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    process = subprocess.Popen([*COMMAND, "finetune", recipe, "--run", str(folder)], stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - now < LIMIT and process.poll() is None:
            if found := next(Events(folder / "events.jsonl").read("step"), None):
                return float(found["time"]) - start
            time.sleep(0.05)
        raise SystemExit("no step was made")
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "start.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        recipe = str(ROOT / "recipes" / "quickstart.yaml")
        subprocess.run([*COMMAND, "initialise", recipe, "--run", str(prepared)], stdout=subprocess.DEVNULL, check=True)
        helps, steps = [], []
        for number in range(given.repeats):
            helps.append(helped())
            steps.append(first_step(prepared, Path(folder) / f"run-{number}"))
    result = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "help_seconds": {"median": statistics.median(helps), "all": helps},
        "first_step_seconds": {"median": statistics.median(steps), "all": steps},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
