"""What adapters share that put modules of their own in the place of linear layers, and keep them in peft's format."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.base.files import read_json, write_json
from tunesmith.models.learnt import read_learnt
from tunesmith.models.load import Loaded

from ..optimizers.hybrid import follow
from .base import Adapter

PREFIX = "base_model.model."
"""What peft puts before every name."""


MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of peft's that change the base, again whenever such a configuration is loaded."""


class Injected(Adapter):
    """Modules around linear layers, each with `enabled`, which turns it off, and `merged()`, which makes it a plain layer again."""

    adds_weights = True
    LAYER: ClassVar[type[Any]] = nn.Module
    """What takes the place of a linear layer."""
    TELLING: ClassVar[tuple[str, ...]] = ()
    """Fields of peft's configuration without which the tensors would fit, and the answers be others."""

    SILENT: ClassVar[tuple[str, ...]] = ()
    """Fields of peft's configuration that say more than an adapter of this kind can be."""

    @abstractmethod
    def tensors(self, layer: Any) -> Mapping[str, Tensor]:
        """What is kept of a layer, by peft's names; to write into where they learn no more."""

    @abstractmethod
    def peft_config(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """peft's configuration; `names` are the last names of the layers, with one of each."""

    def served(self) -> Self:
        """The adapter as it is kept: what it learnt with may not be what it is used with."""
        return self

    def save(self, loaded: Loaded, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` as peft does."""
        layers = self.layers(loaded.model)
        tensors = {
            f"{path}.{name}": tensor.detach().cpu().clone()
            for path, layer in layers.items()
            for name, tensor in self.tensors(layer).items()
        }
        names = {path.rsplit(".", 1)[-1]: layer for path, layer in sorted(layers.items())}
        self.served().write(folder, tensors, names, loaded.folder)

    def write(self, folder: Path, tensors: Mapping[str, Tensor], names: Mapping[str, Any], base: Path) -> None:
        """Write tensors, by their paths in the model, and the configuration; `names` as in `peft_config`."""
        folder.mkdir(parents=True, exist_ok=True)
        named = {f"{PREFIX}{path}": tensor for path, tensor in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "inference_mode": True}
        write_json(folder / "adapter_config.json", {**common, **self.peft_config(names)})

    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Attach and read a file that this or peft wrote."""
        follow(list(loaded.model.parameters()), folder)
        found = read_learnt(folder / "adapter_model.safetensors")
        served = self.served()
        served._check(folder)
        served.attach(loaded, 0)
        wanted = {
            f"{PREFIX}{path}.{name}": tensor
            for path, layer in self.layers(loaded.model).items()
            for name, tensor in self.tensors(layer).items()
        }
        if set(wanted) != set(found):
            odd = sorted(set(wanted) ^ set(found))[:2]
            raise ModelError(
                f"{folder}: this adapter does not fit {loaded.name}: {odd} are on one side only; check its targets"
            )
        with torch.no_grad():
            for name, parameter in wanted.items():
                if found[name].shape != parameter.shape:
                    raise ModelError(
                        f"{folder}: {name.removeprefix(PREFIX)} has shape {tuple(found[name].shape)}, expected {tuple(parameter.shape)}; "
                        "check that adapter.rank and the model are those it was learnt with"
                    )
                parameter.copy_(found[name])
        loaded.model.requires_grad_(False)

    def _check(self, folder: Path) -> None:
        found, wanted = read_json(folder / "adapter_config.json"), self.peft_config({})
        for name in self.TELLING:
            if found.get(name, wanted[name]) != wanted[name]:
                raise ModelError(
                    f"{folder}: its {name} is {found[name]}, this adapter's is {wanted[name]}; check adapter.kind and adapter.alpha"
                )

        if odd := next((name for name in self.SILENT if found.get(name)), None):
            raise ModelError(f"{folder}: its {odd} is {found[odd]}, which adapter {self.kind} cannot be")
        if changed := changes_base(found):
            raise ModelError(changed.format(folder))

    def merge(self, loaded: Loaded) -> None:
        """Fold every module into its layer."""
        for parent, name, layer in children(loaded.model, self.LAYER):
            setattr(parent, name, layer.merged())

    @contextmanager
    def disabled(self, loaded: Loaded) -> Iterator[None]:
        """Within this block the modules are left out."""
        layers = self.layers(loaded.model).values()
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in layers:
                layer.enabled = True

    def layers(self, model: nn.Module) -> dict[str, Any]:
        """Every module of this adapter, by its path."""
        return {path: layer for path, layer in model.named_modules() if isinstance(layer, self.LAYER)}


def changes_base(config: Mapping[str, Any]) -> str:
    """Why an adapter of peft's cannot be put on the base as it is; empty if it can. What the text is about stands for {}."""
    start = config.get("init_lora_weights")
    if not (isinstance(start, str) and start.startswith(MOVING)):
        return ""
    return (
        f"{{}}: its init_lora_weights is {start!r}: it was learnt beside a base of which its start was subtracted; "
        "save it anew by peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    )


def linear_layers(model: Any, names: tuple[str, ...] | None, field: str) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of linear layers by their last names, or of all but the output head.

    Raises:
        ModelError: no layer has a name; it says which there are.
    """
    head = model.get_output_embeddings()
    linear = [(parent, name, layer) for parent, name, layer in children(model, nn.Linear) if layer is not head]
    known = {name for _, name, _ in linear}
    unknown = set(names or ()) - known
    if unknown or not known:
        there = ", ".join(sorted(known)) or "none: this architecture has no nn.Linear layers"
        odd = ", ".join(map(repr, sorted(unknown))) or "linear"
        raise ModelError(f"{field}: no layer is called {odd}; this model's linear layers are {there}")
    return [found for found in linear if names is None or found[1] in names]


def children(model: nn.Module, kind: type) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name, child) of every descendant of a class."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
