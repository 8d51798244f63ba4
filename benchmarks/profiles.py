"""Where the time of a step goes, by kind of operation, in steps of the training benchmark; on a quiet machine: `make bench`, or

python benchmarks/profiles.py [--work lora full dpo]

Of DPO the reference's pass over the same pairs is in it, as it is in that benchmark.
"""

import argparse
import datetime
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "contenders"))

from rounds import RESULTS
from torch.profiler import ProfilerActivity, profile, record_function

from tunesmith.base.artifact import environment
from tunesmith.kernels import native

WORKS = {"lora": ("ours",), "full": ("ours", "--full"), "dpo": ("ours_dpo",)}
WARM, STEPS = 2, 4
"""Steps before the profile begins, and those in it."""
NARROW = 128
"""A product with a side of at most so many is one of a low-rank correction."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::_int_mm")
NATIVE = {
    "attention": "attention", "attention_backward": "attention", "rotate": "attention",
    "glu": "gated activation", "glu_backward": "gated activation",
    "add_norm": "norms", "add_norm_backward": "norms",
    "token_logp": "head and loss",
}  # fmt: skip


def kind_of(name: str, shapes: list[list[int]]) -> str:
    """What an event's own time is counted as."""
    if name in PRODUCTS:
        sides = [side for shape in shapes if len(shape) > 1 for side in shape[-2:]]
        return "small products" if sides and min(sides) <= NARROW else "large products"
    if name.startswith("native "):
        return NATIVE.get(name.removeprefix("native "), "other fused operations")
    if "dam" in name or "Optimizer" in name or "foreach" in name:
        return "optimizer"
    return "copies" if name in ("aten::copy_", "aten::cat", "aten::index", "aten::index_select") else "everything else"


class Watch:
    """Time of operations by kind, of everything that happens between `start` and `stop`."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def start(self) -> None:
        """From here on."""
        self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.profile.start()

    def stop(self, share: float = 1.0) -> None:
        """Until here, of which such a share counts."""
        self.profile.stop()
        for event in self.profile.key_averages(group_by_input_shape=True):
            kind = kind_of(event.key, event.input_shapes)
            self.spent[kind] = self.spent.get(kind, 0.0) + share * event.self_cpu_time_total

    @property
    def shares(self) -> dict[str, float]:
        """Of the whole, the largest first."""
        whole = sum(self.spent.values())
        return {kind: spent / whole for kind, spent in sorted(self.spent.items(), key=lambda pair: -pair[1])}


def profiled(work: str) -> dict[str, float]:
    """Shares of a few steps of one work, in this process."""
    module, *arguments = WORKS[work]
    contender, run, watch = importlib.import_module(module), native.run, Watch()

    def named(operation: str, *rest: Any) -> int:
        with record_function(f"native {operation}"):
            return run(operation, *rest)

    def watched(train: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def steps(*given: Any, **more: Any) -> Iterator[Any]:
            for number, step in enumerate(train(*given, **more), start=1):
                if number == WARM + STEPS:
                    watch.stop()
                yield step
                if number == WARM:
                    watch.start()

        return steps

    def beside(refer: Callable[..., Any]) -> Callable[..., Any]:
        def referred(*given: Any, **more: Any) -> Any:
            watch.start()
            rows = refer(*given, **more)
            watch.stop(STEPS / (WARM + STEPS))
            return rows

        return referred

    native.run = named
    contender.train = watched(contender.train)
    if hasattr(contender, "with_references"):
        contender.with_references = beside(contender.with_references)
    sys.argv = [module, *arguments, "--steps", str(WARM + STEPS)]
    contender.main()
    return watch.shares


def main() -> None:
    """Profile each work in a process of its own and keep the shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--one", action="store_true", help="this work, here and now")
    given = parser.parse_args()
    if given.one:
        print("SHARES " + json.dumps(profiled(given.work[0])), flush=True)
        return
    out = RESULTS / "profiles.json"
    kept = json.loads(out.read_text())["works"] if out.exists() else {}
    for work in given.work:
        command = [sys.executable, __file__, "--one", "--work", work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        line = next((line for line in done.stdout.splitlines() if line.startswith("SHARES ")), None)
        if line is None:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        shares = json.loads(line.removeprefix("SHARES "))
        kept[work] = {"date": datetime.date.today().isoformat(), "environment": environment(), "shares": shares}
        out.write_text(json.dumps({"works": kept}, indent=1) + "\n")
        print(work, ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items()), flush=True)


if __name__ == "__main__":
    main()
