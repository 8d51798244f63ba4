"""Trains and generates on whatever device there is and checks both against float32 on the CPU; prints JSON, `--out` keeps it.

    python benchmarks/gpu.py [--model smollm2-135m] [--steps 20] [--rows 64] [--out benchmarks/results/gpu.json]

Without a GPU the same work runs on the CPU and the result says so.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.artifact import environment
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.data.intake import take_in
from tunesmith.data.ledger import Ledger
from tunesmith.data.render import Renderer
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.forward import token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import Loaded, load
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train

DATA = Path(__file__).parents[1] / "examples" / "debtags" / "train.jsonl.gz"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    loaded = load(given.model)
    examples = [item.example for item in take_in(str(DATA), "train", Ledger(), limit=given.rows).items]
    renderer = Renderer(loaded.tokenizer)
    rows = [renderer.row(example) for example in examples]
    prompts = [renderer.prompt(example.prompt) for example in examples[:16]]
    result = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "environment": environment(),
        "precision": loaded.precision,
        "exactness": exactness(loaded, given.model, rows[:4]),
        "generation": generation(loaded, prompts),
        "training": training(loaded, rows, given.steps),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")


@torch.no_grad()
def exactness(loaded: Loaded, name: str, rows: list[Row]) -> dict[str, float]:
    """Largest and mean gap of log-probabilities to float32 on the CPU."""
    batch = Batch.of(rows)
    found = token_logps(loaded, batch).cpu()
    exact = load(name, "fp32")
    exact.model.to("cpu")
    apart = (token_logps(exact, batch) - found).abs()
    return {"largest_logp_gap": float(apart.max()), "mean_logp_gap": float(apart.mean())}


def generation(loaded: Loaded, prompts: list[list[int]]) -> dict[str, float]:
    """New tokens a second for 16 prompts, after a warm-up."""
    generate(loaded, prompts, Sampling(max_tokens=4))
    start = time.perf_counter()
    made = generate(loaded, prompts, Sampling(max_tokens=48))
    return {"tokens_per_second": sum(len(one.tokens) for one in made) / (time.perf_counter() - start)}


def training(loaded: Loaded, rows: list[Row], steps: int) -> dict[str, Any]:
    """LoRA steps of 8 rows: median tokens a second over the second half, losses, memory."""
    LoRA().attach(loaded, 0)
    optimizer = AdamW().build(trainable(loaded.model))
    data = Dataset(rows, 8, 8, 1 + steps * 8 / len(rows), 0)
    speeds, losses, last = [], [], time.perf_counter()
    for step in train(loaded, SFT(), (data.step(number) for number in range(steps)), optimizer, lambda _: 1.0, seed=0):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        speeds.append(step.tokens / (now - last))
        losses.append(step.loss)
        last = now
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    half = len(speeds) // 2
    return {
        "steps": steps,
        "median_tokens_per_second": statistics.median(speeds[half:]),
        "losses": losses,
        "gpu_peak_bytes": peak,
    }


if __name__ == "__main__":
    main()
