"""Losses of a hundred steps of every method on a tiny model, kept in `losses.json` with what computed them; `python tests/torture/losses.py` writes them anew."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.kernels import native
from tunesmith.kernels.products import fast_float32
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives import base as columns
from tunesmith.methods.objectives.kto import LABEL
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers import Optimizer
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models import attention
from tunesmith.models.heads import attach_head
from tunesmith.models.load import Loaded
from tunesmith.training.loop import train

FILE = Path(__file__).with_name("losses.json")
STEPS, VOCABULARY = 100, 97
Method = tuple[Adapter, Objective, Optimizer]


def build() -> dict[str, str]:
    """What the last bits of a loss depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = {name: re.search(rf"^{name}\s*: (.*)$", text, re.M) for name in ("vendor_id", "cpu family", "model")}
    processor = " ".join(found.group(1) for found in named.values() if found)
    level, capability = native.level() or "torch", torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "kernels": level, "processor": processor, "capability": capability}


def methods() -> dict[str, Method]:
    """Every optimizer, adapter and objective, each beside the defaults of the others."""
    own = LoRA(rank=4, dropout=0.1)
    found: dict[str, Method] = {f"optimizer {one().kind}": (own, SFT(), one()) for one in Optimizer.members()}
    found |= {f"adapter {one().kind}": (one(), SFT(), AdamW(learning_rate=1e-3)) for one in Adapter.members()}
    return found | {f"objective {one().kind}": (own, one(), AdamW(learning_rate=1e-3)) for one in Objective.members()}


def model() -> Loaded:
    """The same random Llama each time."""
    torch.manual_seed(3)
    attention.register()
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    return Loaded("tiny", Path("tiny"), network, None, "fp32", forest=attention.adopt(network))


def rows(answers: int) -> list[Row]:
    """Nine rows that share prefixes, with every column that an objective may read."""
    generator = np.random.default_rng(5)
    numbers = {columns.reference(0): -9.0, columns.reference(1): -11.0, columns.reward(0): 1.0, columns.reward(1): 0.0, LABEL: 1.0}  # fmt: skip
    told = {columns.OLD: -4.5, columns.START: -4.5, columns.VALUE: 0.1, columns.ADVANTAGE: 0.5, columns.RETURN: 0.8}
    taught = {columns.TAUGHT: np.arange(3, 6, dtype=np.int32), columns.TAUGHT_LOGP: np.log([0.4, 0.2, 0.1]).astype(np.float32)}  # fmt: skip
    of_token: dict[str, Any] = {name: np.float32(value) for name, value in told.items()} | taught
    made = []
    for number in range(9):
        prompt = np.concatenate([np.arange(3, 9), generator.integers(3, VOCABULARY, 1 + number % 4)])
        sequences = []
        for _ in range(answers):
            tokens = np.concatenate([prompt, generator.integers(3, VOCABULARY, generator.integers(3, 9))])
            learn = np.arange(len(tokens)) >= len(prompt)
            beside = {name: np.stack([value] * int(learn.sum())) for name, value in of_token.items()}
            sequences.append(Sequence(tokens.astype(np.int32), learn, beside))
        made.append(Row(f"rows:{number + 1}", tuple(sequences), numbers))
    return made


def course(method: Method, steps: int = STEPS) -> list[float]:
    """The loss of each step, in micro-batches of two rows of the three."""
    adapter, objective, optimizer = method
    loaded, every = model(), rows(2)
    adapter.attach(loaded, 1)
    if objective.head:
        attach_head(loaded)
    learnt = trainable(loaded.model)
    frozen = {name: one for name, one in loaded.model.named_parameters() if name not in learnt}
    size = 3 if objective.whole else 2
    chosen = ([every[(3 * step + place) % 9] for place in range(3)] for step in range(steps))
    batches = ([Batch.of(each[start : start + size]) for start in range(0, 3, size)] for each in chosen)
    factor: Callable[[int], float] = lambda step: 1 - step / (2 * STEPS)  # noqa: E731
    return [one.loss for one in train(loaded, objective, batches, optimizer.over(learnt, frozen), factor, seed=7)]


def main() -> None:
    """Write them."""
    torch.set_num_threads(1)
    fast_float32()
    found = {name: course(method) for name, method in methods().items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(losses)}" for name, losses in found.items())
    FILE.write_text(f'{{\n "build": {json.dumps(build())},\n "losses": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    main()
