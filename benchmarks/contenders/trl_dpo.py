"""TRL's side of the DPO benchmark: `python trl_dpo.py --model FOLDER [--best]`, as its documentation has it."""

import argparse

from trl_sft import Clock, timed  # isort: skip  the clock starts before anything is imported

from datasets import Dataset
from peft import LoraConfig
from rows import ALPHA, LEARNING_RATE, PAIRS, RANK, SEED, preferences
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

BEST = {"bf16": True, "gradient_checkpointing": False}


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--best", action="store_true")
    given = parser.parse_args()
    rows = [
        {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]} for prompt, chosen, rejected in preferences()
    ]
    config = DPOConfig(
        output_dir="/tmp/trl-benchmark", per_device_train_batch_size=PAIRS, max_length=512, max_steps=given.steps, use_cpu=True,
        report_to="none", save_strategy="no", logging_steps=1, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", seed=SEED,
        disable_tqdm=True, dataloader_pin_memory=False, **(BEST if given.best else {}),
    )  # fmt: skip
    clock = Clock()
    trainer = DPOTrainer(
        given.model, args=config, train_dataset=Dataset.from_list(rows), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    timed(trainer, clock)


if __name__ == "__main__":
    main()
