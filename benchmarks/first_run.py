"""What a newcomer meets: clones the repository, runs `make quickstart` and `make test`, and notes time, disk space and the result.

    python benchmarks/first_run.py [--skip-test] [--out benchmarks/results/first_run.json]

Nothing of this machine's own environment or caches is used but pip's downloads are; run it with nothing else running.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tunesmith.base.artifact import environment

ROOT = Path(__file__).parents[1]


def timed(command: list[str], folder: Path, home: Path) -> tuple[float, str]:
    """Wall seconds and standard output of a command that must succeed."""
    start = time.perf_counter()
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "HTTP"))}
    clean = {**kept, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return time.perf_counter() - start, done.stdout


def megabytes(*folders: Path) -> int:
    """Disk space that folders take."""
    there = [str(folder) for folder in folders if folder.exists()]
    out = subprocess.run(["du", "-sm", *there], capture_output=True, text=True, check=True).stdout
    return sum(int(line.split()[0]) for line in out.splitlines())


def stages(clone: Path, home: Path) -> dict[str, Any]:
    """Seconds of each stage of the quickstart's run, and its headline."""
    _, shown = timed([".venv/bin/tunesmith", "show", "runs/quickstart", "--json"], clone, home)
    facts = json.loads(shown)["stages"]
    metrics = facts["evaluate"]["metrics"]
    kept = ("grader", "unit", "systems", "differences", "promote", "reasons")
    return {
        "seconds": {name: stage.get("seconds") for name, stage in facts.items()},
        "evaluated": {name: metrics[name] for name in kept},
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Keep what is known so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Clone, run, note."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--skip-test", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "first_run.json")
    given = parser.parse_args()
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder) / "tunesmith", Path(folder) / "home"
        home.mkdir()
        timed(["git", "clone", "--quiet", str(ROOT), str(clone)], Path(folder), home)
        install, _ = timed(["make", ".venv/core"], clone, home)
        quickstart, _ = timed(["make", "quickstart"], clone, home)
        result: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "environment": environment(),
            "quickstart": {
                "install_seconds": round(install),
                "run_seconds": round(quickstart),
                "megabytes": megabytes(clone / ".venv", clone / "runs", home / ".cache" / "tunesmith"),
                **stages(clone, home),
            },
        }
        if given.skip_test and "test" in known:  # as it was measured then
            result["test"] = {"date": known["date"], **known["test"]}
        write(given.out, result)
        if not given.skip_test:
            more, out = timed(["make", "test"], clone, home)
            result["test"] = {
                "seconds": round(more),
                "megabytes": megabytes(clone / ".venv", home / ".cache" / "tunesmith"),
                "last_lines": out.strip().splitlines()[-3:],
                "slowest": [
                    line.strip() for line in out.splitlines() if re.match(r" *[0-9.]+s (call|setup|teardown) ", line)
                ],
            }
            write(given.out, result)
    print(json.dumps({name: result[name] for name in ("quickstart", "test") if name in result}, indent=1)[:3000])


if __name__ == "__main__":
    main()
