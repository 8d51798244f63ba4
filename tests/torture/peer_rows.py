"""What the peer does with a malformed row: load_dataset and SFTTrainer's own preparation of nine rows, of which the fifth is the bad one."""

import io
import json
import logging
import re
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

NAMED = re.compile(r"\b(row|line|index|example)s?\W{0,12}[45]\b", re.IGNORECASE)
"""What names the fifth of nine rows, counted from 0 or from 1."""


def tried(path: Path, model: Any, tokenizer: Any, cache: str) -> dict[str, Any]:
    """Whether the row was named, refused without being named (`raised`), left out in silence (`dropped`) or `used`."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    for name in ("trl", "datasets", "transformers"):
        logging.getLogger(name).addHandler(handler)
    settings = SFTConfig(output_dir=cache, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True)
    try:
        with warnings.catch_warnings(), redirect_stderr(heard):
            warnings.simplefilter("always")
            rows = load_dataset("json", data_files=str(path), cache_dir=cache, split="train")
            made = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer).train_dataset
    except Exception as error:  # noqa: BLE001  whatever it raises is what it says
        chain, said = error, ""
        while chain is not None:
            said += f"{type(chain).__name__}: {chain} "
            chain = chain.__cause__ or chain.__context__
        return {"outcome": "named" if NAMED.search(said) else "raised", "said": said[:300], "specials": {}, "usual": {}}
    finally:
        for name in ("trl", "datasets", "transformers"):
            logging.getLogger(name).removeHandler(handler)
    if len(made) < 9:
        said = heard.getvalue()
        return {"outcome": "named" if NAMED.search(said) else "dropped", "said": f"{len(made)} of 9 rows left", "specials": {}, "usual": {}}  # fmt: skip
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    counted = [Counter(one for one in made[place]["input_ids"] if one in special) for place in (4, 0)]
    return {"outcome": "used", "said": f"{len(made)} rows of 9", "specials": counted[0], "usual": counted[1]}


def main() -> None:
    """Try every file of a folder; what came of each goes beside it."""
    folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    for number in range(count):
        with tempfile.TemporaryDirectory() as cache:
            came = tried(folder / f"{number}.jsonl", model, tokenizer, cache)
        (folder / f"{number}.came").write_text(json.dumps(came))


if __name__ == "__main__":
    main()
