"""Counts trials: how many held, failed loudly or failed in silence, with the exact bound on what was not seen."""

import datetime
import json
import re
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from harness import harness
from scipy.stats import beta

from tunesmith.base.artifact import environment

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "torture"

ELSEWHERE = re.compile(r"/[\w./-]*?/(site-packages|lib/python[\d.]+|pytest-\d+)/")
"""Where on a machine packages and trials are, which says nothing on another."""

Outcome = Literal["held", "loud", "silent"]
"""It ended as promised; it did not, and said so; it did not, and looked as if it had."""


def upper_bound(failures: int, trials: int, level: float = 0.95) -> float:
    """Largest rate of failure that such a count leaves possible (one-sided; Clopper and Pearson, 1934)."""
    return 1.0 if failures >= trials else float(beta.ppf(level, failures + 1, trials - failures))


VERSIONS = """
import json, sys
from importlib.metadata import version
names = ("trl", "transformers", "peft", "torch", "tokenizers", "numpy", "accelerate", "datasets")
print(json.dumps({"python": sys.version.split()[0], **{name: version(name) for name in names}}))
"""


@cache
def environment_of(python: str) -> dict[str, Any]:
    """Where a peer runs: this machine, and the versions that its own Python names."""
    done = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True)
    machine = {name: environment()[name] for name in ("platform", "cores", "processor")}
    return {**machine, **json.loads(done.stdout)}


@dataclass
class Tally:
    """The trials of one test, named by its id, on one subject."""

    id: str
    title: str
    """What holds when it passes, in a few words."""
    subject: str = "tunesmith"
    environment: dict[str, Any] = field(default_factory=environment)
    """Where it was tried."""
    trials: list[dict[str, Any]] = field(default_factory=list)

    def note(self, trial: str, outcome: Outcome, reason: str = "", **facts: Any) -> None:
        """Count a trial; facts are kept beside it."""
        said = ELSEWHERE.sub(r".../\1/", reason)
        self.trials.append({"trial": trial, "outcome": outcome, "reason": said[:300], **facts})

    def verdict(self, trial: str, held: bool, said: bool = False, reason: str = "", **facts: Any) -> None:
        """Count a trial that held, or failed having said something or nothing; facts are kept beside it."""
        self.note(trial, "held" if held else "loud" if said else "silent", "" if held else reason, **facts)

    @property
    def failed(self) -> list[str]:
        """The trials that did not hold, with their reasons."""
        return [f"{one['trial']}: {one['outcome']}: {one['reason']}" for one in self.trials if one["outcome"] != "held"]

    def summary(self) -> dict[str, Any]:
        """Counts, and the bounds that they leave, for the results file."""
        seen = Counter(one["outcome"] for one in self.trials)
        total, silent = len(self.trials), seen["silent"]
        return {
            **asdict(self), "passes": seen["held"], "silent": silent, "total": total,
            "failure_at_most": upper_bound(total - seen["held"], total), "silent_at_most": upper_bound(silent, total),
            "date": datetime.date.today().isoformat(), "harness": harness(),
        }  # fmt: skip

    def keep(self) -> None:
        """Write it beside what is known of other subjects, as `benchmarks/results/torture/ID.json`. What is not tried again keeps its date and its harness."""
        path = RESULTS / f"{self.id}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**known, self.subject: self.summary()}, indent=1) + "\n")
