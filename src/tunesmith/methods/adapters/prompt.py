"""Prompt tuning (Lester et al., 2021, arXiv:2104.08691): embeddings before every prompt learn, the model stays as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunesmith.base import ModelError
from tunesmith.base.files import read_json, write_json
from tunesmith.models.learnt import read_learnt
from tunesmith.models.load import Loaded
from tunesmith.models.memory import refuse_memory
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
    """Length of the prompt; beyond 20 the paper found little to gain."""
    text: str | None = None
    """What the embeddings start as, over and over until there are enough; null draws tokens of the vocabulary."""

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Freeze the base and put what existing tokens give before every sequence."""
        refuse_memory(loaded.name, loaded.model)
        loaded.model.requires_grad_(False)
        if loaded.prefix:
            raise ModelError(f"{loaded.name} has a prompt that learnt already; tune its base instead")
        with torch.no_grad():
            loaded.model.set_input_embeddings(
                self.embedding(loaded.model, self._chosen(loaded, seed).to(loaded.device))
            )

    def embedding(self, model: Any, chosen_P: Tensor) -> PromptEmbedding:
        """The model's embeddings with a prompt that begins as these tokens."""
        base = model.get_input_embeddings()
        return PromptEmbedding(base, base(chosen_P).float())

    def _chosen(self, loaded: Loaded, seed: int) -> Tensor:
        """int64 [P]: the tokens to begin with."""
        count = len(loaded.model.get_input_embeddings().weight)
        if self.text is None or loaded.device.type == "meta":
            generator = torch.Generator().manual_seed(seed)
            return torch.randint(count, (self.tokens,), generator=generator)
        ids = loaded.tokenizer(self.text, add_special_tokens=False).input_ids
        if not ids:
            raise ModelError("adapter.text: it has no tokens; leave it out to draw some")
        return torch.tensor((ids * self.tokens)[: self.tokens])

    def save(self, loaded: Loaded, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` as peft does."""
        folder.mkdir(parents=True, exist_ok=True)
        embedding, config = _embedding(loaded), loaded.model.config.get_text_config()
        prompt = embedding.prompt.detach().cpu().contiguous()
        about_base = {"hidden_size": str(config.hidden_size)}  # one key: safetensors writes several in any order
        save_file({NAME: prompt}, folder / "adapter_model.safetensors", about_base)
        about = {"base_model_name_or_path": str(loaded.folder), "task_type": "CAUSAL_LM", "inference_mode": True}
        sizes = {
            "num_virtual_tokens": len(prompt),
            "num_transformer_submodules": 1,
            "num_layers": config.num_hidden_layers,
        }
        write_json(folder / "adapter_config.json", {**about, **sizes, **self.peft_config(embedding, config)})

    def peft_config(self, embedding: PromptEmbedding, config: Any) -> dict[str, Any]:
        """What peft's configuration says of this kind of prompt."""
        start = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
        width = embedding.prompt.shape[1]
        return {**start, "token_dim": width, "num_attention_heads": config.num_attention_heads}

    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Attach and read a file that this or peft wrote."""
        follow(list(loaded.model.parameters()), folder)
        found, about = read_learnt(folder / "adapter_model.safetensors"), read_json(folder / "adapter_config.json")
        config = loaded.model.config.get_text_config()
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            width = int((file.metadata() or {}).get("hidden_size", config.hidden_size))  # peft does not say it
        if (about.get("num_layers", config.num_hidden_layers), width) != (config.num_hidden_layers, config.hidden_size):
            raise ModelError(
                f"{folder}: learnt on a model of {about.get('num_layers', '?')} layers of width {width}, {loaded.name} has "
                f"{config.num_hidden_layers} of {config.hidden_size}; check model"
            )
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
