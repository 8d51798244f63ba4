"""A prompt of embeddings that learnt: how a model carries it, in memory and in its folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "prompt.safetensors"
"""Stands in a model's folder beside its weights, of which it can be no part."""
NAME = "prompt_embeddings"
"""peft's name for the tensor."""


class PromptEmbedding(nn.Module):
    """A model's embeddings, and behind them some that learn: tokens of its own, which no text has."""

    def __init__(self, base: Any, prompt_PD: Tensor) -> None:
        super().__init__()
        self.enabled, self.size = True, len(base.weight)
        self.prompt = nn.Parameter(prompt_PD)
        self.base = base
        self.train(base.training)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The tokens that stand before every sequence."""
        return tuple(range(self.size, self.size + len(self.prompt))) if self.enabled else ()

    @property
    def weight(self) -> Tensor:
        """Of the model's own embeddings."""
        found: Tensor = self.base.weight
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        """Of any leading shape."""
        found: Tensor = self.base(tokens.clamp(max=self.size - 1))
        own = self.prompt[(tokens - self.size).clamp(min=0)].to(found.dtype)
        return torch.where((tokens >= self.size)[..., None], own, found)


def save_model(model: Any, folder: Path) -> None:
    """Write a model as transformers does, and its prompt, if it has one, beside it."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, PromptEmbedding):
        model.save_pretrained(folder)
        return
    model.set_input_embeddings(embedding.base)
    try:
        model.save_pretrained(folder)
    finally:
        model.set_input_embeddings(embedding)
    save_file({NAME: embedding.prompt.detach().cpu().contiguous()}, folder / FILE, {"format": "pt"})


def load_prompt(model: Any, folder: Path) -> None:
    """Give a model the prompt that its folder holds, if it holds one."""
    if (folder / FILE).exists():
        prompt_PD = load_file(folder / FILE)[NAME].float()
        model.set_input_embeddings(PromptEmbedding(model.get_input_embeddings(), prompt_PD))
        model.requires_grad_(False)
