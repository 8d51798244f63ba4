"""Full fine-tuning: every weight learns."""

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
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
        """Read all weights; they keep the dtype the model was loaded in."""
        tensors = {
            name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()
        }
        missing, unexpected = loaded.model.load_state_dict(tensors, strict=False)
        tied = set(loaded.model.all_tied_weights_keys)
        if unexpected or set(missing) - tied:
            raise ModelError(
                f"{folder}: these weights are not of {loaded.name}; missing {missing[:2]}, unknown {unexpected[:2]}"
            )
        loaded.model.tie_weights()
        loaded.model.requires_grad_(False)

    def merge(self, loaded: Loaded) -> None:
        """Nothing to fold: the weights are the model."""

    def learnt(self, model: nn.Module) -> int:
        """All of them."""
        return sum(parameter.numel() for parameter in model.parameters())
