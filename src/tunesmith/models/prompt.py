"""A prompt that learnt, as embeddings or as keys and values: how a model carries it, in memory and in its folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.base.files import room

from .learnt import read_learnt
from .memory import load_memory, save_memory, without_memory

FILE = "prompt.safetensors"
"""Stands in a model's folder beside its weights, of which it can be no part."""
NAME = "prompt_embeddings"
"""peft's name for the tensor."""
KEYS_AND_VALUES = "keys_and_values"
"""Name of the tensor [P, 2 L, K, W] in a model's folder."""


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


class PrefixEmbedding(PromptEmbedding):
    """The same for a prompt of which only keys and values are there: each layer's attention finds them where it would keep those of its own tokens.

    The tokens pass through the layers like others, so that batches, caches and pages need not know of it; nothing reads what comes out.
    """

    def __init__(self, model: Any, prompt_PLKW: Tensor) -> None:
        super().__init__(model.get_input_embeddings(), prompt_PLKW.flatten(1))
        self.shape = prompt_PLKW.shape[1:]
        layers = [one for one in model.modules() if type(one).__name__.endswith("Attention")]
        if 2 * len(layers) != len(prompt_PLKW[0]):
            raise ModelError(
                f"{type(model).__name__}: {len(layers)} attention layers, and keys and values of {len(prompt_PLKW[0]) // 2}; "
                "take initialise.adapter.kind=prompt"
            )
        for layer in layers:
            layer.register_forward_pre_hook(self._put, with_kwargs=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Of any leading shape; whatever stands for the prompt's own tokens is not looked at."""
        found: Tensor = self.base(tokens.clamp(max=self.size - 1))
        return found

    def _put(self, layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A layer's arguments, with these keys and values where its cache would be."""
        if not self.enabled:
            return given, named
        if "position_ids" not in named:
            raise ModelError(
                f"{type(layer).__name__} is not told positions, by which a prefix is found; take initialise.adapter.kind=prompt"
            )
        prompt_PLKW = self.prompt.view(-1, *self.shape)
        name = "layer_past" if "layer_past" in named else "past_key_values"
        return given, {**named, name: _First(prompt_PLKW, named["position_ids"], named.get(name))}


class _First:
    """Stands where a layer's cache stands: puts learnt keys and values to the first positions of every sequence."""

    def __init__(self, prompt_PLKW: Tensor, place_BT: Tensor, cache: Any) -> None:
        self.prompt_PLKW, self.place_BT, self.cache = prompt_PLKW, place_BT, cache

    def update(self, key: Tensor, value: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, T, W] of a layer, as its cache returns them if there is one."""
        count = len(self.prompt_PLKW)
        learnt_BKT = (self.place_BT < count)[:, None, :, None]
        place_BT = self.place_BT.clamp(max=count - 1)
        key, value = (
            torch.where(learnt_BKT, self.prompt_PLKW[place_BT, 2 * layer + side].transpose(1, 2).to(one.dtype), one)
            for side, one in enumerate((key, value))
        )
        return (key, value) if self.cache is None else self.cache.update(key, value, layer, *rest)


def save_model(model: Any, folder: Path) -> None:
    """Write a model as transformers does, and its prompt or its memory, if it has one, beside it.

    Raises:
        MachineError: the disk has no room for it.
    """
    with room(folder, sum(parameter.nbytes for parameter in model.parameters())):
        _save_model(model, folder)


def _save_model(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_memory(model, folder)
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, PromptEmbedding):
        with without_memory(model):
            model.save_pretrained(folder)
        return
    model.set_input_embeddings(embedding.base)
    try:
        model.save_pretrained(folder)
    finally:
        model.set_input_embeddings(embedding)
    prompt = embedding.prompt.detach().cpu().contiguous()
    held = (
        {KEYS_AND_VALUES: prompt.view(-1, *embedding.shape)}
        if isinstance(embedding, PrefixEmbedding)
        else {NAME: prompt}
    )
    save_file(held, folder / FILE, {"format": "pt"})


def load_beside(model: Any, folder: Path) -> None:
    """Give a model the prompt or the memory that its folder holds, if it holds one."""
    load_memory(model, folder)
    if (folder / FILE).exists():
        held = read_learnt(folder / FILE)
        if KEYS_AND_VALUES in held:
            embedding: PromptEmbedding = PrefixEmbedding(model, held[KEYS_AND_VALUES].float())
        else:
            embedding = PromptEmbedding(model.get_input_embeddings(), held[NAME].float())
        model.set_input_embeddings(embedding)
        model.requires_grad_(False)
