"""TRL's side of the GRPO benchmark: `python trl_grpo.py --model FOLDER [--best]`, as its documentation has it."""

import argparse

from trl_sft import Clock, tell  # isort: skip  the clock starts before anything is imported

from itertools import pairwise

from datasets import Dataset
from peft import LoraConfig
from rows import ALPHA, ANSWER, LEARNING_RATE, RANK, SAMPLES, SEED, messages
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

BEST = {"bf16": True, "gradient_checkpointing": False}


def likeness(completions: list[list[dict[str, str]]], answer: list[str], **_: object) -> list[float]:
    """Share of three-letter runs that an answer has in common with the right one: as cheap as a reward gets."""
    found = []
    for completion, right in zip(completions, answer, strict=True):
        mine, gold = (
            {text[place : place + 3] for place in range(len(text) - 2)} for text in (completion[0]["content"], right)
        )
        found.append(2 * len(mine & gold) / max(1, len(mine) + len(gold)))
    return found


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--best", action="store_true")
    given = parser.parse_args()
    rows = [{"prompt": talk[:-1], "answer": talk[-1]["content"]} for talk in messages()]
    config = GRPOConfig(
        output_dir="/tmp/trl-benchmark", per_device_train_batch_size=SAMPLES, num_generations=SAMPLES, max_completion_length=ANSWER,
        max_steps=given.steps, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", seed=SEED, disable_tqdm=True, dataloader_pin_memory=False, **(BEST if given.best else {}),
    )  # fmt: skip
    clock = Clock()
    trainer = GRPOTrainer(
        given.model, reward_funcs=likeness, args=config, train_dataset=Dataset.from_list(rows), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    tell(clock, [after - before for before, after in pairwise([0.0, *clock.seen])])


if __name__ == "__main__":
    main()
