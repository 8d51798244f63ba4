"""TRL's side of the SFT benchmark: `python trl_sft.py --model FOLDER --steps 8 [--best] [--full] [--dora] [--fp32] [--gpu [--liger | --unsloth]]`, as its documentation has it.

Default: SFTTrainer with a LoraConfig and nothing else said. Best: what its documentation and a search of settings on this work find fastest on
a CPU: bf16 autocast, no gradient checkpointing, rows of like length together. Liger's kernels and Unsloth's model are for GPUs.
"""

import os
import time

STARTED = time.perf_counter()
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import argparse  # noqa: E402  the clock starts before anything is imported
from collections.abc import Sequence  # noqa: E402
from typing import Any  # noqa: E402

from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from rows import ALPHA, BATCH, LEARNING_RATE, RANK, SEED, messages, report  # noqa: E402
from transformers import AutoTokenizer, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

BEST = {"bf16": True, "gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}


class Clock(TrainerCallback):
    """Notes when steps end, and their losses."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.seen: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step starts here."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is over."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """Its loss, and tokens so far where they are counted."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])
            self.seen.append(logs.get("num_tokens", 0.0))


def timed(trainer: Any, clock: Clock) -> None:
    """Train and report, counting the tokens that are no padding."""
    tokens: list[int] = []
    collate = trainer.data_collator

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = counted
    trainer.train()
    tell(clock, tokens)


def tell(clock: Clock, tokens: Sequence[float]) -> None:
    """Report, given the tokens of each step."""
    steps = [
        {"tokens": count, "seconds": end[0] - start[0], "cpu": end[1] - start[1]}
        for count, start, end in zip(tokens, clock.ends, clock.ends[1:], strict=False)
    ]
    report(steps, STARTED, clock.ends[1][0], clock.losses)


def lora(dora: bool) -> LoraConfig:
    """The same adapter for all."""
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora)


def unsloth(folder: str) -> Any:
    """Unsloth's model with its own adapter, as its documentation has it."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=512, load_in_4bit=False)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, target_modules=targets, lora_dropout=0, bias="none", random_state=SEED
    )


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--full", action="store_true", help="all weights learn")
    parser.add_argument("--dora", action="store_true", help="the magnitude of each output learns too")
    parser.add_argument("--fp32", action="store_true", help="no autocast")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--liger", action="store_true", help="with Liger's kernels")
    parser.add_argument("--unsloth", action="store_true", help="with Unsloth's model and adapter")
    given = parser.parse_args()
    model, peft = given.model, None if given.full else lora(given.dora)
    if given.unsloth:
        model, peft = unsloth(given.model), None
    chosen = BEST if given.best else {"bf16": False, "gradient_checkpointing": False} if given.fp32 else {}
    talks = [{"prompt": talk[:-1], "completion": talk[-1:]} for talk in messages()]
    config = SFTConfig(
        output_dir="/tmp/trl-benchmark", per_device_train_batch_size=BATCH, max_length=512, max_steps=given.steps, use_cpu=not given.gpu, use_liger_kernel=given.liger,
        report_to="none", save_strategy="no", logging_steps=1, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", seed=SEED,
        disable_tqdm=True, dataloader_pin_memory=False, **chosen,
    )  # fmt: skip
    clock = Clock()
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(talks), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=peft,
    )  # fmt: skip
    timed(trainer, clock)


if __name__ == "__main__":
    main()
