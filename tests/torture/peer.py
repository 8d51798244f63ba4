"""The peer's side of the trials, run by the Python of an environment of its own: TRL's SFTTrainer, with LoRA or all weights, resuming from its last checkpoint."""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train in a folder, or go on there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--save-every", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--full", action="store_true", help="learn all weights")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare rows and load batches")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = given.folder / "run"
    settings = SFTConfig(
        output_dir=str(run), max_steps=given.steps, save_steps=given.save_every, per_device_train_batch_size=given.batch, learning_rate=0.01,
        save_total_limit=2, report_to=[], use_cpu=True, bf16=False, seed=0, logging_steps=1, disable_tqdm=True,
        dataset_num_proc=given.workers or None, dataloader_num_workers=given.workers,
    )  # fmt: skip
    rows = load_dataset(
        "json", data_files=str(given.folder / "rows.jsonl"), cache_dir=str(given.folder / "cache"), split="train"
    )
    adapter = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=str(given.folder / "model"),
        args=settings,
        train_dataset=rows,
        peft_config=None if given.full else adapter,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)) if run.is_dir() else None)
    trainer.save_model(str(given.folder / "done"))


if __name__ == "__main__":
    main()
