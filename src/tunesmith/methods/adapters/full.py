"""Full fine-tuning: every weight learns."""

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tunesmith.base import ModelError
from tunesmith.models.load import Loaded

from .base import Adapter


class Full(Adapter):
    """Every weight learns, kept in float32. The most capacity, and the most memory: 16 bytes a parameter with AdamW."""

    kind: Literal["full"] = "full"

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Keep all weights in float32 and let them learn; there is nothing to draw."""
        loaded.model.to(torch.float32)
        loaded.model.requires_grad_(True)

    def save(self, loaded: Loaded, folder: Path) -> None:
        """Write the whole model as transformers does."""
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Read all weights, by transformers, whose files may name them otherwise; they keep the dtype the model was loaded in."""
        kind = type(loaded.model)
        try:
            read = kind.from_pretrained(folder, dtype=loaded.model.dtype, local_files_only=True, use_safetensors=True)
            loaded.model.load_state_dict(read.state_dict())
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(f"{folder}: these weights are not of {loaded.name}: {reason}") from None
        loaded.model.requires_grad_(False)

    def merge(self, loaded: Loaded) -> None:
        """Nothing to fold: the weights are the model."""

    def learnt(self, model: nn.Module) -> int:
        """All of them."""
        return sum(parameter.numel() for parameter in model.parameters())
