"""What unstructured methods share: weights become zero where they stand, as many as were asked for in every group that is compared."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.base.proof import Proof
from tunesmith.data.example import Row
from tunesmith.models.load import Loaded
from tunesmith.models.skeleton import skeleton

from .base import Pruning, linears, prunable_layers


class Sparse(Pruning):
    """Zeros among the weights. Dense products take the same time and memory with them: it is the stored file that can be compressed, and hardware
    with sparse products that could be quicker."""

    sparsity: float = Field(0.5, gt=0, lt=1)
    """Share of the weights that become zero; half in the papers of Wanda and SparseGPT."""
    pattern: Literal["free", "2:4", "4:8"] = "free"
    """2:4 leaves two weights of each four in a row, as sparse products of GPUs want it; 4:8 four of eight. Both ask for a sparsity of 0.5."""

    @model_validator(mode="after")
    def _pattern_fits(self) -> Self:
        if self.pattern != "free" and self.sparsity != 0.5:
            raise ValueError(f"pattern {self.pattern} is half zeros: leave sparsity out, or take pattern: free")
        return self

    def check(self, config: Any) -> None:
        """Refuse architectures without linear layers, and rows of weights that are no multiple of the pattern."""
        for layer in prunable_layers(skeleton(config, "fp32")):
            for _, linear in linears(layer):
                self.width(linear.weight)

    @abstractmethod
    def silence(self, loaded: Loaded, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        """Set the weights that matter least to zero."""

    @property
    def compared(self) -> Literal["row", "matrix"]:
        """Among which weights the smallest are looked for, without a pattern."""
        return "row"

    def width(self, weight_OI: Tensor) -> int:
        """How many weights, one after the other, are compared with each other.

        Raises:
            ModelError: rows are no multiple of the pattern.
        """
        if self.pattern == "free":
            return weight_OI.shape[1] if self.compared == "row" else weight_OI.numel()
        width = int(self.pattern.partition(":")[2])
        if weight_OI.shape[1] % width:
            raise ModelError(
                f"prune.method.pattern {self.pattern}: a layer has rows of {weight_OI.shape[1]} weights, no multiple of {width}; take pattern: free"
            )
        return width

    def count(self, weight_OI: Tensor) -> int:
        """How many weights of each group become zero."""
        return round(self.sparsity * self.width(weight_OI))

    @torch.no_grad()
    def drop(self, linear: nn.Linear, score_OI: Tensor) -> None:
        """Set the weights with the smallest scores of every group to zero."""
        score_GI = score_OI.reshape(-1, self.width(score_OI))
        found_GC = score_GI.topk(self.count(score_OI), dim=1, largest=False).indices
        goes_GI = torch.zeros_like(score_GI, dtype=torch.bool).scatter_(1, found_GC, True)
        linear.weight.masked_fill_(goes_GI.view_as(score_OI), 0.0)

    def zeros(self, model: Any) -> dict[str, Tensor]:
        """By weight, which are zero."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {
            names[id(linear.weight)]: linear.weight.detach() == 0
            for layer in prunable_layers(model)
            for _, linear in linears(layer)
        }

    def prove(self, proof: Proof, model: Any) -> None:
        """Every group has its zeros."""
        asked = found = short = groups = 0
        for layer in prunable_layers(model):
            for _, linear in linears(layer):
                zeros_G = (linear.weight.detach().reshape(-1, self.width(linear.weight)) == 0).sum(1)
                count = self.count(linear.weight)
                asked, found = asked + count * len(zeros_G), found + int(zeros_G.sum())
                groups, short = groups + len(zeros_G), short + int((zeros_G < count).sum())
        proof.claim("the zeros asked for are there", short == 0, asked=asked, zeros=found, groups=groups, short=short)
