"""Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685), with the scale of rsLoRA and the start of PiSSA where they are wanted."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.base import ModelError
from tunesmith.kernels.lora_linear import LoRALinear
from tunesmith.kernels.quantised_linear import weight_of
from tunesmith.models.load import Loaded
from tunesmith.models.memory import refuse_memory

from .injected import Injected, linear_layers


class LoRA(Injected):
    """Low-rank corrections learn, the base stays frozen: little memory, small files, and close to full quality on most tasks."""

    kind: Literal["lora"] = "lora"
    LAYER: ClassVar[type[LoRALinear]] = LoRALinear
    TELLING: ClassVar[tuple[str, ...]] = ("lora_alpha", "use_rslora", "use_dora")
    SILENT: ClassVar[tuple[str, ...]] = ("alpha_pattern", "rank_pattern", "alora_invocation_tokens", "use_qalora")
    rank: int = Field(16, gt=0)
    """Width of the correction; more rank learns more and costs more. The paper tries 1 to 64 and finds small ones enough for large models; 16 is our choice."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the correction; it is divided by the rank. Twice the rank by custom."""
    scaling: Literal["rank", "root"] = "rank"
    """What alpha is divided by: the rank, or its root, with which high ranks learn as fast as low ones (rsLoRA; Kalajdzievski, 2023, arXiv:2312.03732)."""
    start: Literal["zero", "principal"] = "zero"
    """What corrections begin with: nothing, or the weight's own principal part, which is subtracted again (PiSSA; Meng et al., 2024,
    arXiv:2404.02948): it learns faster at first, at twice the cost of a correction and in a file of twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the correction's inputs dropped while training; 0 is peft's default, QLoRA's paper (arXiv:2305.14314) takes 0.05 to 0.1. Objectives
    that sample answers take none."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Last names of the linear layers to adapt, such as q_proj; `all-linear` is all but the output head."""

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Freeze the base and put a correction beside each target, A uniform in +-1/sqrt(inputs) as peft has it, B zero."""
        refuse_memory(loaded.name, loaded.model)
        loaded.model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        names = None if self.targets == "all-linear" else self.targets
        for parent, name, layer in linear_layers(loaded.model, names, "adapter.targets"):
            corrected = self.LAYER(layer, self.rank, self.scale, self.dropout, generator)
            if self.start == "principal":
                corrected.begin(*principal(layer, self.rank, self.scale, seed))
            setattr(parent, name, corrected)

    @property
    def scale(self) -> float:
        """Factor of a correction."""
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    def served(self) -> Self:
        """The same corrections; what they started from is a part of them."""
        if self.start == "zero":
            return self
        rank = 2 * self.rank
        alpha = self.scale * (rank if self.scaling == "rank" else math.sqrt(rank))
        return self.model_copy(update={"rank": rank, "alpha": alpha, "start": "zero"})

    def tensors(self, layer: LoRALinear) -> Mapping[str, Tensor]:
        """What is kept of a layer, by peft's names."""
        return {"lora_A.weight": layer.down, "lora_B.weight": layer.up}

    def peft_config(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """peft's configuration."""
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(names),
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": self.scaling == "root",
            "use_dora": False,
        }


def principal(layer: Any, rank: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R] such that scale B A is the weight's part of its largest singular values (PiSSA, eq. 2 and 3), by a randomised SVD."""
    weight = weight_of(layer).detach().float()
    if rank > min(weight.shape):
        raise ModelError(f"adapter.rank: {rank} is more than a matrix of {tuple(weight.shape)} has; take a smaller one")
    if weight.is_meta:
        return weight.new_empty(rank, weight.shape[1]), weight.new_empty(weight.shape[0], rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left_OR, value_R, right_IR = torch.svd_lowrank(weight, min(rank + 8, min(weight.shape)), niter=16)
    root_R = (value_R[:rank] / scale).sqrt()
    return root_R[:, None] * right_IR[:, :rank].t(), left_OR[:, :rank] * root_R
