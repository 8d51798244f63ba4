"""What an optimizer is: a recipe for a torch optimizer over named parameters."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from tunesmith.base import ConfigError, Family

LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
"""Where a parameter's name tells its layer."""


class Optimizer(Family):
    """How weights move. `build` returns a torch optimizer whose `step(closure)` computes the loss itself."""

    gradients: ClassVar[bool] = True
    """Whether it moves along gradients; else its first steps may well go uphill."""
    moves_frozen: ClassVar[bool] = False
    """Whether it also moves what an adapter leaves frozen, without a gradient; that is then kept in float32."""
    learning_rate: float = Field(gt=0)
    """Largest step size, reached after warmup."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of a matrix, times the learning rate, taken off at each step; biases and norms never decay. 0 is our choice; torch's AdamW takes 0.01, its
    Muon 0.1."""
    rates: Mapping[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Factors of the learning rate by parameter name, with * for any text: {"*.lora_B": 16} is LoRA+ (arXiv:2402.12354). 0 holds weights still."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate from each layer that learns to the one below it (arXiv:1801.06146); embeddings are below the first. 1 turns it off."""

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over what learns; names tell, for example, which weights decay."""

    def over(self, parameters: Mapping[str, nn.Parameter], frozen: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """As `build`, where it is also to know what does not learn."""
        return self.build(parameters)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Memory that its state takes, in bytes."""
        return 0

    def scratch_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Memory that it takes during a step, beside the passes, in bytes."""
        return 0

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups for torch: those of one learning rate together, matrices, which decay, apart from the rest.

        Raises:
            ConfigError: a name in `rates` fits nothing that learns.
        """
        for pattern in self.rates:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                there = ", ".join(sorted({"*." + name.rpartition(".")[2] for name in parameters}))
                raise ConfigError(f"optimizer.rates: nothing that learns is called {pattern!r}; there are {there}")
        below = _below(parameters)
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            decay = self.weight_decay if is_matrix(parameter) else 0.0
            factor = self._rate(name) * self.layer_decay ** (below[name] - min(below.values()))
            found.setdefault((factor, decay), []).append(parameter)
        return [
            {"params": held, "lr": self.learning_rate * factor, "weight_decay": decay}
            for (factor, decay), held in found.items()
        ]

    def _rate(self, name: str) -> float:
        """Factor of the learning rate by name."""
        found = 1.0
        for pattern, factor in self.rates.items():
            found *= factor if fnmatchcase(name, pattern) else 1.0
        return found


def _below(names: Iterable[str]) -> dict[str, int]:
    """How many layers each parameter is below the top: the head and the last norm at 0, embeddings below the first layer."""
    layers = {name: int(found[1]) for name in names if (found := LAYER.search(name))}
    top = max(layers.values(), default=-1) + 1
    return {name: top - layers[name] if name in layers else (top + 1) * embeds(name) for name in names}


def embeds(name: str) -> bool:
    """Whether a parameter is of embeddings, of tokens or of places, by what architectures call them."""
    own = name.split(".")[:-1]
    return any(part in ("wte", "wpe") or ("embed" in part and part != "embed_out") for part in own)


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it has rows and columns, more than one of each."""
    return parameter.ndim > 1 and min(parameter.shape) > 1


def held(parameters: Mapping[str, nn.Parameter], numbers: int) -> int:
    """Bytes of so many float32 numbers for each weight."""
    return 4 * numbers * sum(parameter.numel() for parameter in parameters.values())
