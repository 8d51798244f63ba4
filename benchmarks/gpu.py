"""Trains and generates on whatever device there is and checks both against float32 on the CPU; prints JSON, and keeps it where there is a GPU or `--out` says so.

    python benchmarks/gpu.py [--model smollm2-135m] [--steps 20] [--rows 64] [--out benchmarks/results/gpu.json]
    python benchmarks/gpu.py --peer .venv-trl/bin/python [--rounds 2] [--out benchmarks/results/gpu_training.json]
    python benchmarks/gpu.py --qlora [--tiny] [--rank 64] [--tokens 512] [--out benchmarks/results/qlora.json]

Without a GPU the same work runs on the CPU and the result says so. The second form lets LoRA steps take turns with TRL's (default, best, with Liger's kernels, with
Unsloth's model, where these are installed) on a GPU. The third takes a model of random weights in the shape of Llama 65B, made
in four bits layer by layer, through two QLoRA steps (arXiv:2305.14314 has 48 GB for such a model); with --tiny in a tiny shape, anywhere.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.base.artifact import environment
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.data.intake import take_in
from tunesmith.data.ledger import Ledger
from tunesmith.data.render import Renderer
from tunesmith.kernels.memory import Peak
from tunesmith.kernels.nf4_linear import NF4Linear
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.injected import linear_layers
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.methods.optimizers.adamw8bit import AdamW8bit
from tunesmith.models import attention
from tunesmith.models.forward import token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import Loaded, load, locate, parameters
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[1] / "examples" / "debtags" / "train.jsonl.gz"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--peer", help="the python of an environment with TRL and PEFT, and perhaps Liger and Unsloth")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--qlora", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    about = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "environment": environment(),
    }
    measured = qlora(given.tiny, given.rank, given.tokens) if given.qlora else everything(given)
    if given.peer and not given.qlora:
        measured |= {"against": against(given.peer, given.model, given.rounds)}
    text = json.dumps({**about, **measured}, indent=2)
    print(text)
    if given.out is None and torch.cuda.is_available():
        given.out = RESULTS / ("qlora.json" if given.qlora else "gpu_training.json" if given.peer else "gpu.json")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")


def against(peer: str, model: str, rounds: int) -> dict[str, Any]:
    """LoRA steps of every contender in turn; what cannot run says why."""
    from rounds import OURS, Contender, versions  # beside this file: found where this is run as a program

    if not torch.cuda.is_available():
        return {"skipped": "there is no GPU here; benchmarks/training.py compares on the CPU"}
    steps = ("--steps", "20")
    contenders = {
        OURS: Contender("ours.py", steps),
        "TRL default": Contender("trl_sft.py", (*steps, "--gpu"), peer=True),
        "TRL best": Contender("trl_sft.py", (*steps, "--gpu", "--best"), peer=True),
        "TRL best with Liger": Contender("trl_sft.py", (*steps, "--gpu", "--best", "--liger"), peer=True),
        "TRL with Unsloth": Contender("trl_sft.py", (*steps, "--gpu", "--best", "--unsloth"), peer=True),
    }
    found: dict[str, list[Any]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            try:
                found[name].append(contender.run(peer, locate(model)))
            except SystemExit as error:
                found[name].append({"failed": str(error).strip().splitlines()[-1]})
    own = [one.get("tokens_per_second") for one in found[OURS]]
    faster = {
        name: statistics.median(a / b["tokens_per_second"] for a, b in zip(own, runs, strict=True))
        for name, runs in found.items()
        if all(own) and all("failed" not in one for one in runs)
    }
    return {"tunesmith_is_faster": faster, "rounds": found, "peer": versions(peer)}


def everything(given: argparse.Namespace) -> dict[str, Any]:
    """Exactness, generation and training of a small model."""
    loaded = load(given.model)
    examples = [item.example for item in take_in(str(DATA), "train", Ledger(), limit=given.rows).items]
    renderer = Renderer(loaded.tokenizer)
    rows = [renderer.row(example) for example in examples]
    prompts = [renderer.prompt(example.prompt) for example in examples[:16]]
    return {
        "precision": loaded.precision,
        "exactness": exactness(loaded, given.model, rows[:4]),
        "generation": generation(loaded, prompts),
        "training": training(loaded, rows, given.steps),
    }


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


LLAMA_65B = {
    "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 64, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
TINY = {**LLAMA_65B, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512}  # fmt: skip
LIMIT = 48 * 10**9
"""Bytes of the paper's GPU."""


def qlora(tiny: bool, rank: int, tokens: int) -> dict[str, Any]:
    """Two steps on one row of random tokens, with activation checkpointing and AdamW in eight bits."""
    if not (tiny or torch.cuda.is_available()):
        return {"qlora": "not run: there is no GPU; --tiny shows that the code runs"}
    loaded, peak = in_four_bits(TINY if tiny else LLAMA_65B), Peak()
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, NF4Linear)]
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    held = sum(tensor.nbytes for layer in layers for tensor in (layer.weight, *layer.buffers()))
    LoRA(rank=rank, alpha=16).attach(loaded, 0)
    learnt = trainable(loaded.model)
    row = np.random.default_rng(0).integers(3, loaded.model.config.vocab_size, tokens).astype(np.int32)
    batch = Batch.of([Row("random", (Sequence(row, np.arange(tokens) >= tokens // 2),))])
    optimizer = AdamW8bit(learning_rate=1e-4).build(learnt)
    start = time.perf_counter()
    losses = [step.loss for step in train(loaded, SFT(), [[batch]] * 2, optimizer, lambda _: 1.0, seed=0)]
    most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak.megabytes << 20
    return {
        "parameters": parameters(loaded.model) - sum(one.numel() for one in learnt.values()),
        "learning": sum(one.numel() for one in learnt.values()),
        "rank": rank,
        "tokens": tokens,
        "bytes_per_number_of_the_base": held / numbers,
        "losses": losses,
        "seconds": time.perf_counter() - start,
        "peak_bytes": most,
        "under_48_gb": most < LIMIT,
    }


def in_four_bits(shape: dict[str, int]) -> Loaded:
    """A model of random weights whose layers come to be one at a time, in bf16, and are brought to four bits at once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attention.register()
    config = LlamaConfig(**shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention.NAME)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    for parent, name, child in linear_layers(model, None, "benchmark"):
        made = nn.Linear(child.in_features, child.out_features, False, device, torch.bfloat16)
        setattr(parent, name, NF4Linear(made, torch.bfloat16))
    for parent in model.modules():
        for name, weight in list(parent.named_parameters(recurse=False)):
            if weight.is_meta:  # embeddings and head as transformers draws them, norms one
                made = torch.empty_like(weight, device=device)
                setattr(parent, name, nn.Parameter(made.fill_(1) if made.ndim == 1 else made.normal_(0, 0.02)))
    model.requires_grad_(False)
    loaded = Loaded("random", Path(), model, None, "nf4")
    loaded.forest, loaded.checkpointing = attention.adopt(model), True
    return loaded


if __name__ == "__main__":
    main()
