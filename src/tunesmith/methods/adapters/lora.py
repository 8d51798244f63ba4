"""Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.base import ModelError
from tunesmith.base.files import read_json, write_json
from tunesmith.kernels.lora_linear import LoRALinear
from tunesmith.models.load import Loaded

from .base import Adapter

PREFIX = "base_model.model."
"""What peft puts before every name."""


class LoRA(Adapter):
    """Low-rank corrections learn, the base stays frozen: little memory, small files, and close to full quality on most tasks."""

    kind: Literal["lora"] = "lora"
    adds_weights = True
    rank: int = Field(16, gt=0)
    """Width of the correction; more rank learns more and costs more."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the correction; it is divided by the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the correction's inputs dropped while training."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Last names of the linear layers to adapt, such as q_proj; `all-linear` is all but the output head."""

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Freeze the base and put a correction beside each target, A uniform in +-1/sqrt(inputs) as peft has it, B zero."""
        loaded.model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        found = self._targets(loaded.model)
        for parent, name, layer in found:
            setattr(parent, name, LoRALinear(layer, self.rank, self.alpha / self.rank, self.dropout, generator))

    def learnt(self, model: nn.Module) -> int:
        """rank x (inputs + outputs) of each target."""
        return sum(self.rank * (layer.in_features + layer.out_features) for _, _, layer in self._targets(model))

    def _targets(self, model: Any) -> list[tuple[nn.Module, str, nn.Linear]]:
        head = model.get_output_embeddings()
        linear = [(parent, name, layer) for parent, name, layer in _children(model, nn.Linear) if layer is not head]
        names = {name for _, name, _ in linear}
        unknown = set() if self.targets == "all-linear" else set(self.targets) - names
        if unknown or not names:
            there = ", ".join(sorted(names)) or "none: this architecture has no nn.Linear layers"
            odd = ", ".join(map(repr, sorted(unknown))) or "linear"
            raise ModelError(f"adapter.targets: no layer is called {odd}; this model's linear layers are {there}")
        return [found for found in linear if self.targets == "all-linear" or found[1] in self.targets]

    def save(self, loaded: Loaded, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` as peft does."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors, names = {}, set()
        for path, layer in loaded.model.named_modules():
            if isinstance(layer, LoRALinear):
                names.add(path.rsplit(".", 1)[-1])
                tensors[f"{PREFIX}{path}.lora_A.weight"] = layer.lora_A.detach().cpu().clone()
                tensors[f"{PREFIX}{path}.lora_B.weight"] = layer.lora_B.detach().cpu().clone()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(folder / "adapter_config.json", self._peft_config(loaded, sorted(names)))

    def _peft_config(self, loaded: Loaded, names: list[str]) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(loaded.folder),
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": names,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "use_rslora": False,
            "use_dora": False,
        }

    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Attach and read a file that this or peft wrote."""
        tensors = load_file(folder / "adapter_model.safetensors")
        self._check_scale(folder)
        self.attach(loaded, 0)
        layers = {path: layer for path, layer in loaded.model.named_modules() if isinstance(layer, LoRALinear)}
        wanted = {f"{PREFIX}{path}.lora_{part}.weight" for path in layers for part in "AB"}
        if wanted != set(tensors):
            odd = sorted(wanted ^ set(tensors))[:2]
            raise ModelError(
                f"{folder}: this adapter does not fit {loaded.name}: {odd} are on one side only; check adapter.targets"
            )
        with torch.no_grad():
            for path, layer in layers.items():
                for part, parameter in (("A", layer.lora_A), ("B", layer.lora_B)):
                    tensor = tensors[f"{PREFIX}{path}.lora_{part}.weight"]
                    if tensor.shape != parameter.shape:
                        raise ModelError(
                            f"{folder}: {path} has shape {tuple(tensor.shape)}, expected {tuple(parameter.shape)}; check adapter.rank"
                        )
                    parameter.copy_(tensor)
        loaded.model.requires_grad_(False)

    def _check_scale(self, folder: Path) -> None:
        """Refuse a file whose corrections are scaled otherwise: its tensors would fit, and the answers only be worse."""
        found = read_json(folder / "adapter_config.json")
        for name, wanted in (("lora_alpha", self.alpha), ("use_rslora", False), ("use_dora", False)):
            if found.get(name, wanted) != wanted:
                raise ModelError(
                    f"{folder}: its {name} is {found[name]}, this adapter's is {wanted}; check adapter.alpha"
                )

    def merge(self, loaded: Loaded) -> None:
        """Fold every correction into its layer."""
        for parent, name, layer in _children(loaded.model, LoRALinear):
            setattr(parent, name, layer.merged())

    @contextmanager
    def disabled(self, loaded: Loaded) -> Iterator[None]:
        """Within this block the corrections are left out."""
        layers = [layer for layer in loaded.model.modules() if isinstance(layer, LoRALinear)]
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in layers:
                layer.enabled = True


def _children(model: nn.Module, kind: type) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name, child) of every descendant of a class."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
