"""Estimates of small trainings on a made-up machine."""

import numpy as np
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from tunesmith.data.example import Row, Sequence
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.load import Loaded
from tunesmith.stages.estimate import Estimate, estimate
from tunesmith.stages.machine import Speed
from tunesmith.training.batches import Dataset

TINY = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "qwen3": Qwen3Config(**TINY),
    "gemma3": Gemma3TextConfig(**TINY, sliding_window=16),
    "mistral": MistralConfig(**TINY),
}
SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0,
)  # fmt: skip
RESIDENT = 400 << 20
SPEED = Speed(fp32=1e11, bf16=2e11, bandwidth=1e10, operation=1e-6)


def rows_of(count: int, length: int = 24, shared: int = 8, learnt: int = 4) -> list[Row]:
    """Rows of random tokens, whose first ones are the same and whose last ones are learnt."""
    random = np.random.default_rng(0)
    prefix, rows = random.integers(3, 380, shared), []
    for number in range(count):
        tokens = np.concatenate([prefix, random.integers(3, 380, length - shared)]).astype(np.int32)
        rows.append(Row(f"rows:{number}", (Sequence(tokens, np.arange(length) >= length - learnt),)))
    return rows


def estimated(
    config, adapter, data=None, *, objective=None, precision="fp32", batch=4, micro_batch=4, epochs=1.0, available=1 << 40, resident=RESIDENT, **more
) -> Estimate:  # fmt: skip
    """Of eight rows by AdamW, unless `data` are other rows or rows in their batches."""
    if not isinstance(data, Dataset):
        data = Dataset(data or rows_of(8), batch, micro_batch, epochs, 0)
    machine = {"speed": SPEED, "available": available, "resident": resident}
    return estimate(config, adapter, AdamW(), objective or SFT(), data, precision=precision, **machine, **more)


def attach(loaded, adapter) -> Loaded:
    adapter.attach(loaded, 0)
    return loaded
