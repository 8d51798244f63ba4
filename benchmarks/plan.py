"""What `plan` says of a training against what the training then takes; `make bench`, or

python benchmarks/plan.py [--work lora full ...] [--out benchmarks/results/plan.json]
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.artifact import environment

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from rows import messages, preferences

RESULTS = Path(__file__).parent / "results"
LONG = 12
"""Rows whose prompts are put together to make one of some 2,000 tokens."""


@dataclass(frozen=True)
class Work:
    """A training, by its source, its number of rows and what is unlike the recipe below."""

    title: str
    rows: int
    overrides: tuple[str, ...] = ()
    source: str = "rows"


RECIPE = """model: smollm2-135m
precision: bf16
prepare: {{source: {source}, rows: {rows}, validation_fraction: 8, max_tokens: 4096}}
finetune: {{epochs: 1, batch: 8}}
"""
WORKS = {
    "lora": Work("LoRA, batch 8", 40),
    "batch-2": Work("LoRA, batch 2", 24, ("finetune.batch=2",)),
    "batch-16": Work("LoRA, batch 16", 56, ("finetune.batch=16",)),
    "long": Work("LoRA, batch 2, rows of 2,000 tokens", 16, ("finetune.batch=2",), "long"),
    "checkpointing": Work("LoRA, batch 8, layers computed again", 40, ("finetune.activation_checkpointing=true",)),
    "micro-batch": Work("LoRA, batch 8, micro-batch 2", 32, ("finetune.micro_batch=2",)),
    "fp32": Work("LoRA, batch 8, float32", 32, ("precision=fp32",)),
    "generic": Work("LoRA with dropout, batch 8, transformers' layers", 32, ("initialise.adapter.dropout=0.05",)),
    "dpo": Work("DPO with LoRA, batch 4", 28, ("finetune.objective.kind=dpo", "finetune.batch=4"), "pairs"),
    "full": Work("full, batch 8", 32, ("initialise.adapter.kind=full",)),
    "full-offload": Work(
        "full, batch 8, moments in a file", 32, ("initialise.adapter.kind=full", "finetune.optimizer.offload=true")
    ),
    "steps-200": Work("LoRA, batch 4, 200 steps", 408, ("finetune.batch=4", "finetune.epochs=2")),
}


def write_sources(folder: Path) -> None:
    """The rows, pairs of them to prefer between, and long ones."""
    talks = messages()
    pairs = [
        {"prompt": prompt[-1]["content"], "chosen": chosen["content"], "rejected": rejected["content"]}
        for prompt, chosen, rejected in preferences()
    ]
    users = ["\n\n".join(talk[-2]["content"] for talk in talks[n : n + LONG]) for n in range(0, len(talks), LONG)]
    long = [
        [*talks[LONG * n][:-2], {"role": "user", "content": user}, talks[LONG * n][-1]] for n, user in enumerate(users)
    ]
    for name, lines in (
        ("rows", [{"messages": talk} for talk in talks]),
        ("long", [{"messages": talk} for talk in long]),
        ("pairs", pairs),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(name: str, folder: Path) -> dict[str, Any]:
    """Plan and train in a process of its own, as a user would; what was said and what was seen."""
    work = WORKS[name]
    recipe, out = folder / f"{name}.yaml", folder / name
    recipe.write_text(RECIPE.format(source=f"{work.source}.jsonl", rows=work.rows))
    code = "from tunesmith.cli import main; main()"
    command = [sys.executable, "-c", code, "finetune", str(recipe), "--run", str(out), *work.overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    said = json.loads((out / "plan.json").read_text())["estimate"]
    manifest = next(
        json.loads(file.read_text()) for file in out.glob("**/manifest.json") if '"finetune"' in file.read_text()
    )
    seen = manifest["metrics"]
    peak = seen["peak_memory_mb"] << 20
    return {
        "title": work.title,
        "steps": seen["steps"],
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
        "planned_bytes": said["peak_bytes"],
        "seen_bytes": peak,
        "memory_error": said["peak_bytes"] / peak - 1,
        "planned_seconds": said["seconds"],
        "seen_seconds": seen["step_seconds"],
    }


def main() -> None:
    """Run what is asked for and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=list(WORKS), nargs="*", default=list(WORKS))
    parser.add_argument("--out", type=Path, default=RESULTS / "plan.json")
    given = parser.parse_args()
    kept = json.loads(given.out.read_text())["works"] if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        write_sources(Path(temporary))
        for name in given.work:
            found = kept[name] = run(name, Path(temporary))
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({"works": kept}, indent=1) + "\n")
            print(
                f"{name:14s} memory: planned {found['planned_bytes'] / 1e6:6.0f} MB, seen {found['seen_bytes'] / 1e6:6.0f} MB "
                f"({found['memory_error']:+.1%}); time: planned {found['planned_seconds']:.0f} s, seen {found['seen_seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
