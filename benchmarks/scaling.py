"""What a LoRA step costs as rows get longer, ranks higher and models larger; `make bench`, or

    python benchmarks/scaling.py [--rounds 2] [--axis length rank model]

Rows are random tokens without a common prefix, 4,096 tokens a step or one row, 64 of each learnt from. Points of an axis take turns in processes of their own, and
figures are ratios to the axis's first point of the same round.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import RESULTS, product_limit

from tunesmith.base.artifact import environment
from tunesmith.data.example import Row, Sequence
from tunesmith.kernels.memory import Peak, keep_steady
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models import attention
from tunesmith.models.load import Loaded, load
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train

TOKENS, ANSWER, STEPS = 4096, 64, 4
FIRST = {"model": "smollm2-135m", "length": 512, "rank": 16}
AXES: dict[str, list[dict[str, Any]]] = {
    "length": [FIRST, *({**FIRST, "length": length} for length in (128, 256, 1024, 2048, 4096, 8192))],
    "rank": [FIRST, *({**FIRST, "rank": rank} for rank in (4, 64, 256))],
    "model": [FIRST, {**FIRST, "model": "gemma3-270m-shape"}],
}
GEMMA = {
    "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "query_pre_attn_scalar": 256,
}  # fmt: skip
"""Gemma 3 270M's shape; its weights here are random."""


def shaped() -> Loaded:
    """A random model in bf16 of Gemma 3 270M's shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    config = AutoConfig.for_model("gemma3_text", **GEMMA)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.set_default_dtype(before)
    loaded = Loaded("gemma3-270m-shape", Path("none"), model, None, "bf16")
    loaded.forest = attention.adopt(model)
    return loaded


def one(model: str, length: int, rank: int) -> dict[str, Any]:
    """A few steps in this process; the first does not count."""
    keep_steady()
    limit = product_limit(1.0)
    loaded = shaped() if model == "gemma3-270m-shape" else load(model, "bf16")
    work = operations(loaded, length)
    LoRA(rank=rank, alpha=2 * rank).attach(loaded, 0)
    batch = max(1, TOKENS // length)
    draw = np.random.default_rng(0)
    vocabulary, learn = loaded.model.config.vocab_size, np.arange(length) >= length - ANSWER
    rows = [
        Row(f"random:{number}", (Sequence(draw.integers(3, vocabulary, length).astype(np.int32), learn),))
        for number in range(STEPS * batch)
    ]
    peak, optimizer = Peak(), AdamW().build(trainable(loaded.model))
    data, taken, before = Dataset(rows, batch, batch, 1.0, 0), [], time.perf_counter()
    for step in train(loaded, SFT(), data.from_step(0), optimizer, lambda _: 1.0, seed=0):
        taken.append((time.perf_counter() - before) / step.tokens)
        before = time.perf_counter()
    fused = loaded.decoder() is not None
    seconds = statistics.median(taken[1:])
    return {
        "tokens_per_second": 1 / seconds, "peak_mb": peak.megabytes, "fused": fused,
        "share_of_limit": work / seconds / limit,
    }  # fmt: skip


def operations(loaded: Loaded, length: int) -> float:
    """Floating point operations of a token's large products and its attention, forward and backward through a frozen base."""
    config = loaded.model.config
    weights = sum(
        layer.weight.numel()
        for name, layer in loaded.model.named_modules()
        if name.endswith("_proj") and hasattr(layer, "weight")
    )
    window = getattr(config, "sliding_window", None) or length
    seen = min(window, length) / 2 if window < length else length / 2
    attended = config.num_hidden_layers * config.num_attention_heads * config.head_dim * seen
    head = config.vocab_size * config.hidden_size * ANSWER / length
    return 4 * weights + 2 * 2 * 3.5 * attended + 4 * head


def apart(point: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def main() -> None:
    """Run rounds of every axis asked for and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--axis", choices=list(AXES), nargs="*", default=list(AXES))
    parser.add_argument("--one", type=json.loads, help="a point, here and now")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    given = parser.parse_args()
    if given.one:
        print("RESULT " + json.dumps(one(**given.one)), flush=True)
        return
    kept = json.loads(given.out.read_text())["works"] if given.out.exists() else {}
    for axis in given.axis:
        rounds: list[list[dict[str, Any]]] = []
        for number in range(given.rounds):
            found = []
            for point in AXES[axis]:
                found.append(apart(point))
                print(f"{axis}, round {number + 1}: {point[axis]}  {found[-1]}", flush=True)
            rounds.append(found)  # a run that is stopped keeps the rounds that it ended
            kept[axis] = summary(axis, rounds)
            given.out.write_text(json.dumps({"works": kept}, indent=1) + "\n")


def summary(axis: str, rounds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of an axis's points over rounds; `relative` is to the first point of the same round."""
    points = []
    for place, point in enumerate(AXES[axis]):
        middle = {
            name: statistics.median(each[place][name] for each in rounds)
            for name in ("tokens_per_second", "share_of_limit", "peak_mb")
        }
        ratios = [each[place]["tokens_per_second"] / each[0]["tokens_per_second"] for each in rounds]
        fused = all(each[place]["fused"] for each in rounds)
        points.append({"point": point, **middle, "relative": statistics.median(ratios), "fused": fused})
    stamp = {"date": datetime.date.today().isoformat(), "environment": environment()}
    return {**stamp, "points": points, "rounds": rounds}


if __name__ == "__main__":
    main()
