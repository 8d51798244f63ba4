"""Prompt tuning (Lester et al., 2021, arXiv:2104.08691): embeddings before every prompt learn, the model stays as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from tunesmith.base import ModelError
from tunesmith.base.files import read_json, write_json
from tunesmith.models.load import Loaded
from tunesmith.models.prompt import NAME, PromptEmbedding

from ..optimizers.hybrid import follow
from .base import Adapter


class Prompt(Adapter):
    """A prompt that is no text: kilobytes, and the model itself is untouched. It takes high learning rates and many steps, and cannot be merged."""

    kind: Literal["prompt"] = "prompt"
    adds_weights = True
    neutral: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    tokens: int = Field(20, ge=1)
    """Length of the prompt."""
    text: str | None = None
    """What the embeddings start as, over and over until there are enough; null draws tokens of the vocabulary."""

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Freeze the base and put embeddings of existing tokens before every sequence."""
        loaded.model.requires_grad_(False)
        if loaded.prefix:
            raise ModelError(f"{loaded.name} has a prompt that learnt already; tune its base instead")
        base = loaded.model.get_input_embeddings()
        if base.weight.is_meta:
            chosen = torch.zeros(self.tokens, dtype=torch.int64, device="meta")
        elif self.text is None:
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randint(len(base.weight), (self.tokens,), generator=generator)
        else:
            ids = loaded.tokenizer(self.text, add_special_tokens=False).input_ids
            if not ids:
                raise ModelError("adapter.text: it has no tokens; leave it out to draw some")
            chosen = torch.tensor((ids * self.tokens)[: self.tokens])
        with torch.no_grad():
            prompt_PD = base(chosen).float()
        loaded.model.set_input_embeddings(PromptEmbedding(base, prompt_PD))

    def save(self, loaded: Loaded, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` as peft does."""
        folder.mkdir(parents=True, exist_ok=True)
        prompt, config = _embedding(loaded).prompt.detach().cpu(), loaded.model.config.get_text_config()
        save_file({NAME: prompt.contiguous()}, folder / "adapter_model.safetensors", {"format": "pt"})
        shape = {"num_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads}
        about = {"base_model_name_or_path": str(loaded.folder), "task_type": "CAUSAL_LM", "inference_mode": True}
        sizes = {"num_virtual_tokens": len(prompt), "token_dim": prompt.shape[1], "num_transformer_submodules": 1}
        start = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
        write_json(folder / "adapter_config.json", {**start, **about, **sizes, **shape})

    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Attach and read a file that this or peft wrote."""
        follow(list(loaded.model.parameters()), folder)
        found, about = load_file(folder / "adapter_model.safetensors"), read_json(folder / "adapter_config.json")
        layers = loaded.model.config.get_text_config().num_hidden_layers
        if about.get("num_layers", layers) != layers:
            raise ModelError(f"{folder}: learnt on a model of {about['num_layers']} layers, {loaded.name} has {layers}")
        self.attach(loaded, 0)
        prompt = _embedding(loaded).prompt
        if set(found) != {NAME} or found[NAME].shape != prompt.shape:
            there = ", ".join(f"{name} {tuple(one.shape)}" for name, one in list(found.items())[:2])
            raise ModelError(
                f"{folder}: holds {there}, this adapter has a prompt of {tuple(prompt.shape)}; check adapter.tokens"
            )
        with torch.no_grad():
            prompt.copy_(found[NAME])
        loaded.model.requires_grad_(False)

    def merge(self, loaded: Loaded) -> None:
        """Nothing: embeddings before a prompt have no place in the weights."""

    @contextmanager
    def disabled(self, loaded: Loaded) -> Iterator[None]:
        """Within this block no prompt is put before anything."""
        embedding = _embedding(loaded)
        embedding.enabled = False
        try:
            yield
        finally:
            embedding.enabled = True


def _embedding(loaded: Loaded) -> PromptEmbedding:
    found = loaded.model.get_input_embeddings()
    assert isinstance(found, PromptEmbedding)
    return found
