"""A memory of many small experts (after Li et al., 2024, arXiv:2406.17642) behind one linear layer, and how a model's folder carries it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from tunesmith.base import ModelError

FILE = "memory.safetensors"
"""Stands in a model's folder beside its weights, of which it can be no part."""
ASLEEP = 1000.0
"""A floor that no likeness, which is a cosine, reaches; infinity would be one that nothing learnt can have."""
MOST = 2.0
"""More than any likeness, rounded as it may be."""
TENSORS = ("memory_A", "memory_B", "key", "mean", "deviation", "floor")
ITERATIONS = 10
"""Of k-means."""
OUTLIER = 0.1
"""Least deviation of an input's element, as a share of the mean one: what hardly varies between the rows must not decide alone."""


class MemoryLinear(nn.Module):
    """A frozen linear layer, and experts of a low rank of which each token wakes the few whose keys are nearest to its input.

    Keys do not learn, and what comes into the layer is computed by frozen weights alone: which experts a token wakes is settled before
    the first step, is the same in training and serving, and depends on nothing but the token and those before it.
    """

    def __init__(self, base: nn.Linear, experts: int, rank: int, scale: float, active: int) -> None:
        super().__init__()
        self.scale, self.active, self.enabled = scale, active, True
        width, device = base.in_features, base.weight.device
        self.memory_A = nn.Parameter(torch.zeros(experts, rank, width, device=device))
        self.memory_B = nn.Parameter(torch.zeros(experts, rank, base.out_features, device=device))
        self.key: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.floor: Tensor
        self.register_buffer("key", torch.zeros(experts, width, device=device))
        self.register_buffer("mean", torch.zeros(width, device=device))
        self.register_buffer("deviation", torch.ones(width, device=device))
        self.register_buffer("floor", torch.full((experts,), -2.0, device=device))
        base.weight.requires_grad_(False)
        self.base = base
        self.train(base.training)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it consists of beside its base."""
        return {name: getattr(self, name) for name in TENSORS}

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape; the last axis is the layer's input."""
        found: Tensor = self.base(x)
        if not self.enabled:
            return found
        inner_TE = linear(x, self.memory_A.flatten(0, 1).to(x.dtype))
        inner_TNR = inner_TE.view(*x.shape[:-1], *self.memory_A.shape[:2]) * self.awake(x)[..., None]
        recalled: Tensor = linear(inner_TNR.flatten(-2), self.memory_B.flatten(0, 1).t().to(x.dtype))
        return found + self.scale * recalled

    @torch.no_grad()
    def awake(self, x: Tensor) -> Tensor:
        """bool [..., N]: the experts that each token wakes, at most `active`."""
        likeness_TN = linear(self._direction(x), self.key.float())
        likeness_TN.masked_fill_(self.floor > MOST, -torch.inf)  # asleep for good, it takes no other's place
        nearest_TK = likeness_TN.topk(self.active, -1).indices
        chosen_TN = torch.zeros_like(likeness_TN, dtype=torch.bool).scatter(-1, nearest_TK, True)
        return chosen_TN & (likeness_TN >= self.floor)

    def _direction(self, x: Tensor) -> Tensor:
        """What keys are compared with: how an input departs from the mean one, as a direction."""
        return normalize((x.float() - self.mean) / self.deviation, dim=-1)

    @torch.no_grad()
    def settle(self, input_MI: Tensor, reach: float, seed: int) -> None:
        """Choose the keys by spherical k-means over inputs (Dhillon and Modha, 2001); an expert wakes for what is as near as its own inputs are.

        Args:
            input_MI: inputs of the tokens that are to be learnt from.
            reach: how much less alike than its farthest own input, as a cosine, one may be that still wakes an expert.
            seed: of the first keys.
        """
        deviation = input_MI.float().std(0, correction=0)
        self.mean.copy_(input_MI.float().mean(0))
        self.deviation.copy_(deviation.clamp(min=OUTLIER * float(deviation.mean()) + 1e-12))
        query_MI = self._direction(input_MI)
        first = torch.randperm(len(query_MI), generator=torch.Generator().manual_seed(seed))[: len(self.key)]
        key_NI = torch.zeros_like(self.key)
        key_NI[: len(first)] = query_MI[first]
        for _ in range(ITERATIONS if len(first) < len(query_MI) else 0):
            owner_M = (query_MI @ key_NI.t()).argmax(1)
            sum_NI = torch.zeros_like(key_NI).index_add(0, owner_M, query_MI)
            key_NI = torch.where(sum_NI.any(1, keepdim=True), normalize(sum_NI, dim=1), key_NI)
        likeness_M, owner_M = (query_MI @ key_NI.t()).max(1)
        least_N = torch.full_like(self.floor, ASLEEP).scatter_reduce(0, owner_M, likeness_M, "amin")
        self.key.copy_(key_NI)
        self.floor.copy_(least_N - reach)  # one that owns nothing stays asleep


def memories(model: nn.Module) -> dict[str, MemoryLinear]:
    """Every memory of a model, by its path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, MemoryLinear)}


def refuse_memory(name: str, model: nn.Module) -> None:
    """Refuse a model with a memory where something else is to learn: its keys are compared with states that would move, and none but
    `save_memory` writes it.

    Raises:
        ModelError: it has one.
    """
    if memories(model):
        raise ModelError(
            f"{name} has a memory that learnt, which holds only as long as the rest stays; tune its base instead"
        )


@contextmanager
def without_memory(model: nn.Module) -> Iterator[None]:
    """Within this block the layers are plain ones again."""
    found = memories(model)
    for path, layer in found.items():
        model.set_submodule(path, layer.base)
    try:
        yield
    finally:
        for path, layer in found.items():
            model.set_submodule(path, layer)


def save_memory(model: nn.Module, folder: Path) -> None:
    """Write what a model remembers, if it has a memory, beside its weights."""
    found = memories(model)
    if found:
        tensors = {
            f"{path}.{name}": one.detach().cpu() for path, each in found.items() for name, one in each.tensors.items()
        }
        about = {path: f"{layer.scale} {layer.active}" for path, layer in found.items()}
        save_file(
            tensors, folder / FILE, {"layers": json.dumps(about)}
        )  # one key: safetensors writes several in any order


def load_memory(model: Any, folder: Path) -> None:
    """Give a model the memory that its folder holds, if it holds one."""
    if not (folder / FILE).exists():
        return
    with safe_open(folder / FILE, "pt") as file:
        for path, settings in json.loads(file.metadata()["layers"]).items():
            scale, active = settings.split()
            held = {name: file.get_tensor(f"{path}.{name}").float() for name in TENSORS}
            experts, rank, _ = held["memory_A"].shape
            layer = MemoryLinear(model.get_submodule(path), experts, rank, float(scale), int(active))
            with torch.no_grad():
                for name, tensor in layer.tensors.items():
                    tensor.copy_(held[name])
            model.set_submodule(path, layer)
    model.requires_grad_(False)
