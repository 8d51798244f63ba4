"""TRL's side of the data benchmark: `python trl_prepare.py --model FOLDER --rows 100000 [--processes 2]`, what SFTTrainer maps over the rows.

The trainer's own `_prepare_dataset` is called, as its constructor does, from reading the file on: chat template, tokens, completion mask, labels,
truncation. The model is left out, since it has no part in it.
"""

import os
import time

STARTED = time.perf_counter()
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import argparse  # noqa: E402  the clock starts before anything is imported
import json  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from datasets import load_dataset  # noqa: E402
from many_rows import write_rows  # noqa: E402
from rows import MAX_LENGTH, report_rows  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402


def write_pairs(path: Path, count: int) -> None:
    """The same rows in TRL's form for answers that are learnt and prompts that are not."""
    write_rows(path.with_suffix(".talks"), count)
    with path.with_suffix(".talks").open(encoding="utf-8") as lines, path.open("w", encoding="utf-8") as file:
        for line in lines:
            *prompt, answer = json.loads(line)["messages"]
            file.write(json.dumps({"prompt": prompt, "completion": [answer]}, ensure_ascii=False) + "\n")


def main() -> None:
    """Prepare and report."""
    imported = time.perf_counter() - STARTED
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--processes", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "train.jsonl"
        write_pairs(source, given.rows)
        start = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(given.model)
        config = SFTConfig(output_dir=folder, use_cpu=True, max_length=MAX_LENGTH, dataset_num_proc=given.processes)
        rows = load_dataset("json", data_files=str(source), split="train", cache_dir=f"{folder}/cache")
        trainer = SFTTrainer.__new__(SFTTrainer)
        trainer._tokenizer, trainer.chat_template, trainer.completion_only_loss = tokenizer, None, True
        made = trainer._prepare_dataset(rows, tokenizer, config, False, None, "train")
        seconds = time.perf_counter() - start + imported
        tokens = sum(len(part["input_ids"].combine_chunks().flatten()) for part in made.with_format("arrow").iter(1000))
    report_rows(seconds, given.rows, len(made), tokens)


if __name__ == "__main__":
    main()
