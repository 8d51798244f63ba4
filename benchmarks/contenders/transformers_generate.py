"""transformers' side of the generation benchmark: `python transformers_generate.py --model FOLDER --batch 16`."""

import argparse
import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from rows import answered, messages, report_generation
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Answer and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16).eval()
    talks = [talk[:-1] for talk in messages()[: given.batch]]
    batch = tokenizer.apply_chat_template(
        talks, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}

    def once(most: int) -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(**batch, do_sample=False, max_new_tokens=most)
        answers = []
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
            answers.append(row[:end])
        return answers

    report_generation(*answered(once), int(batch["attention_mask"].sum()))


if __name__ == "__main__":
    main()
