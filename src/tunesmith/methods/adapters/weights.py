"""What adapters share that let weights of the model itself learn: which ones is the only question."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tunesmith.base import ModelError
from tunesmith.models.learnt import check_learnt
from tunesmith.models.load import Loaded, load_config
from tunesmith.models.memory import refuse_memory
from tunesmith.models.vetting import vet_loaded, vet_weights

from .base import Adapter


class Weights(Adapter):
    """Weights of the model learn, kept in float32; the others keep every bit. A member names those that learn."""

    @abstractmethod
    def chosen(self, model: Any, seed: int) -> set[str]:
        """Names of the parameters that learn.

        Raises:
            ModelError: there are none in this model.
        """

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Freeze the model but for what is chosen."""
        if loaded.prefix:
            raise ModelError(
                f"{loaded.name} has a prompt that learnt, which its weights cannot hold; tune its base instead"
            )
        refuse_memory(loaded.name, loaded.model)
        names = self.chosen(loaded.model, seed)
        if not names:
            raise ModelError(f"adapter {self.kind}: nothing would learn in {loaded.name}")
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(name in names)
            if name in names:
                parameter.data = parameter.data.to(torch.float32)

    def save(self, loaded: Loaded, folder: Path) -> None:
        """Write the whole model as transformers does."""
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Read all weights, by transformers, whose files may name them otherwise; they keep the dtype the model was loaded in."""
        kind = type(loaded.model)
        try:
            vet_weights(folder, load_config(folder))
            read, told = kind.from_pretrained(
                folder, dtype=loaded.model.dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            vet_loaded(folder, read, told)
            check_learnt(read.state_dict(), folder)
            loaded.model.load_state_dict(read.state_dict())
        except ModelError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(f"{folder}: these weights are not of {loaded.name}: {reason}") from None
        loaded.model.requires_grad_(False)

    def merge(self, loaded: Loaded) -> None:
        """Nothing to fold: the weights are the model."""
