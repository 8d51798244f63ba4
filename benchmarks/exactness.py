"""How far training in bf16 and on an int8 base is from float32: gradients of one batch, and the losses of a run; `make bench`, or

python benchmarks/exactness.py [--steps 100] [--out benchmarks/results/exactness.json]
"""

import argparse
import datetime
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.artifact import environment
from tunesmith.data.example import Example, Row
from tunesmith.data.render import Renderer
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.load import Loaded, Precision, load
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from rows import ALPHA, BATCH, LEARNING_RATE, RANK, ROWS, SEED, messages

RESULTS = Path(__file__).parent / "results"
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8")


def adapted(precision: Precision) -> tuple[Loaded, list[Row]]:
    """The model with a fresh adapter, and the rows."""
    loaded = load("smollm2-135m", precision)
    renderer = Renderer(loaded.tokenizer)
    talks = enumerate(messages())
    rows = renderer.rows(Example(f"train:{number}", tuple(talk[:-1]), ((talk[-1],),)) for number, talk in talks)
    LoRA(rank=RANK, alpha=ALPHA).attach(loaded, SEED)
    return loaded, [row for row in rows if isinstance(row, Row)]


def gradients(precision: Precision) -> dict[str, torch.Tensor]:
    """Of one batch, with corrections that correct something."""
    loaded, rows = adapted(precision)
    generator = torch.Generator().manual_seed(SEED)
    weights = trainable(loaded.model)
    with torch.no_grad():
        for name, weight in weights.items():
            if "lora_B" in name:
                weight.copy_(0.01 * torch.randn(weight.shape, generator=generator))
    (batch,) = Dataset(rows, BATCH, BATCH, 1, SEED).step(0)
    SFT()(loaded, batch).total.backward()
    return {name: weight.grad.flatten().double() for name, weight in weights.items() if weight.grad is not None}


def cosines(half: dict[str, torch.Tensor], single: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of all gradients together and of the worst tensor, and the ratio of norms."""
    cosine = torch.nn.functional.cosine_similarity
    every = [torch.cat([found[name] for name in single]) for found in (half, single)]
    return {
        "all": float(cosine(*every, 0)),
        "worst_tensor": min(float(cosine(half[name], single[name], 0)) for name in single),
        "norm_ratio": float(every[0].norm() / every[1].norm()),
    }


def losses(precision: Precision, count: int) -> list[float]:
    """Of a run's steps."""
    loaded, rows = adapted(precision)
    optimizer = AdamW(learning_rate=LEARNING_RATE, weight_decay=0.0).build(trainable(loaded.model))
    steps = Dataset(rows, BATCH, BATCH, count * BATCH / ROWS, SEED).from_step(0)
    return [step.loss for step in train(loaded, SFT(), steps, optimizer, lambda _: 1.0, seed=SEED)]


def traces(half: list[float], single: list[float]) -> dict[str, Any]:
    """How far two runs' losses are apart, relative to the second."""
    apart = [abs(a - b) / b for a, b in zip(half, single, strict=True)]
    return {
        "steps": len(half),
        "mean_difference": abs(sum(half) - sum(single)) / sum(single),
        "median_difference": statistics.median(apart),
        "largest_difference": max(apart),
    }


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "exactness.json")
    given = parser.parse_args()
    result: dict[str, Any] = {"date": datetime.date.today().isoformat(), "environment": environment()}
    exact, expected = gradients("fp32"), losses("fp32", given.steps)
    result["fp32"] = {"losses": expected}
    for precision in PRECISIONS:
        found = losses(precision, given.steps)
        figures = {"gradient_cosine": cosines(gradients(precision), exact), "loss": traces(found, expected)}
        result[precision] = {**figures, "losses": found}
        print(precision, json.dumps(figures), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
