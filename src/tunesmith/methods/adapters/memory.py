"""Memory tuning (Li et al., 2024, arXiv:2406.17642): many small experts, chosen by what is asked, learn single facts until they are exact."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.models.forward import pass_layers
from tunesmith.models.layers import decoder_layers
from tunesmith.models.load import Loaded
from tunesmith.models.memory import MemoryLinear, refuse_memory

from .injected import Injected

QUERIES = 64
"""Tokens, for each expert, by which keys are chosen at most."""
ROWS = 8
"""Rows that pass together while keys are chosen."""


class Memory(Injected):
    """For facts that must be exact, such as codes, names and prices; take `objective.enough` with it and many epochs. Text unlike the
    training rows wakes no expert, and is answered as by the base.

    The paper leaves open how many experts there are, of what rank, where, and what their keys are: all of that is our choice. They stand
    behind one layer, since a second would see what the first one changes, and their keys are centres of the training rows' own states.
    """

    kind: Literal["memory"] = "memory"
    LAYER: ClassVar[type[MemoryLinear]] = MemoryLinear
    TELLING: ClassVar[tuple[str, ...]] = ("alpha", "active")
    merges: ClassVar[bool] = False
    frozen_base: ClassVar[bool] = True
    experts: int = Field(256, ge=1)
    """How many there are; facts share one where there are fewer experts than tokens to learn. Our choice."""
    rank: int = Field(4, gt=0)
    """Width of an expert; our choice."""
    alpha: float = Field(8.0, gt=0)
    """Scale of what experts add; it is divided by the rank. Twice the rank by custom."""
    active: int = Field(1, ge=1)
    """Experts that a token wakes at most; with one, facts that are alike disturb each other least. Our choice."""
    reach: float = Field(0.1, ge=0)
    """How much less alike than the farthest of its own tokens, as a cosine, a token may be that still wakes an expert: more answers other
    wordings too, and changes more of other text. 2 wakes the nearest experts always. Our choice."""
    layer: int | None = Field(None, ge=0)
    """The decoder layer, from 0, behind whose feed-forward layer experts stand; null takes the one two thirds of the way up."""
    target: str = "down_proj"
    """Last name of the linear layer that they stand beside, whose inputs are compared with their keys."""

    @model_validator(mode="after")
    def _some_sleep(self) -> Self:
        if self.active > self.experts:
            raise ValueError(f"active: {self.active} experts cannot be woken of {self.experts}")
        return self

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Freeze the base and put experts that change nothing yet beside the layer; until `begin` their keys are drawn, and they never sleep."""
        refuse_memory(loaded.name, loaded.model)
        loaded.model.requires_grad_(False)
        layers = decoder_layers(loaded.model)
        number = 2 * len(layers) // 3 if self.layer is None else self.layer
        if number >= len(layers):
            raise ModelError(f"adapter.layer: this model has {len(layers)} layers, counted from 0, not {number}")
        paths = [
            path for path, one in layers[number].named_modules()
            if isinstance(one, torch.nn.Linear) and path.rsplit(".", 1)[-1] == self.target
        ]  # fmt: skip
        if len(paths) != 1:
            there = sorted(p for p, one in layers[number].named_modules() if isinstance(one, torch.nn.Linear))
            raise ModelError(
                f"adapter.target: layer {number} has not one linear layer called {self.target!r} but {', '.join(there) or 'none'}"
            )
        base, generator = layers[number].get_submodule(paths[0]), torch.Generator().manual_seed(seed)
        memory = MemoryLinear(base, self.experts, self.rank, self.alpha / self.rank, self.active)
        bound = 1 / math.sqrt(base.in_features)
        with torch.no_grad():
            memory.memory_A.copy_((2 * torch.rand(memory.memory_A.shape, generator=generator) - 1) * bound)
            memory.key.copy_(torch.nn.functional.normalize(torch.randn(memory.key.shape, generator=generator), dim=1))
        layers[number].set_submodule(paths[0], memory)

    @torch.no_grad()
    def begin(self, loaded: Loaded, rows: Sequence[Row], seed: int) -> None:
        """Choose the keys by the states of the tokens from which an answer's next one is told."""
        (memory,) = self.layers(loaded.model).values()
        total = sum(row.supervised for row in rows)
        step, skipped = -(-total // (QUERIES * self.experts)), 0
        found, seen = list[Tensor](), list[Tensor]()
        handle = memory.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
        loaded.model.eval()
        try:
            for start in range(0, len(rows), ROWS):
                batch = Batch.of(rows[start : start + ROWS])
                pass_layers(loaded, batch, padded=not loaded.forest)
                input_BTI = seen.pop()
                place_M = _places(loaded, batch, input_BTI.shape[1]).to(loaded.device)
                found.append(input_BTI.flatten(0, 1)[place_M[skipped::step]].float())
                skipped = (skipped - len(place_M)) % step
        finally:
            handle.remove()
        memory.settle(torch.cat(found), self.reach, seed)

    def tensors(self, layer: MemoryLinear) -> Mapping[str, Tensor]:
        """What is kept of it."""
        return layer.tensors

    def peft_config(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Of a kind that peft does not know."""
        sizes = {"experts": self.experts, "rank": self.rank, "alpha": self.alpha, "active": self.active}
        return {"peft_type": "TUNESMITH_MEMORY", "target_modules": list(names), **sizes}

    def merge(self, loaded: Loaded) -> None:
        """Nothing: what depends on the token has no place in the weights."""


def _places(loaded: Loaded, batch: Batch, width: int) -> Tensor:
    """int64 [M]: where supervised tokens are predicted among the inputs of a layer, of `width` tokens a row; each place once."""
    longer = batch.behind(loaded.prefix)
    place_M = longer.source_M
    if not loaded.forest:
        place_M = batch.sequence_M * width + longer.forest.depth_N[longer.source_M]
    once_M: Tensor = torch.unique(place_M)
    return once_M
