"""Writes a toy model: a random Llama of two layers whose tokenizer is learnt from your rows, to rehearse a recipe with.

    python docs/toy_model.py rows.jsonl toy

It knows nothing and answers nonsense, but every stage treats it as it treats a real model, in seconds.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    f"{START}" + "{{ message['role'] + '\\n' + message['content'] }}" + f"{END}\n"
    "{% endfor %}{% if add_generation_prompt %}" + f"{START}assistant\n" + "{% endif %}"
)


def tokenizer_from(rows: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 1,000 pieces with ChatML's turns."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[END, START], initial_alphabet=alphabet, show_progress=False
    )
    backend.train([str(rows)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    made.add_special_tokens({"additional_special_tokens": [START]})
    made.chat_template = TEMPLATE
    return made


def main(rows: str, folder: str) -> None:
    """Write the model for the text of `rows` into `folder`."""
    tokenizer = tokenizer_from(Path(rows))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(weight.numel() for weight in model.parameters()):,} random weights")


if __name__ == "__main__":
    main(*sys.argv[1:3])
