"""Muon (Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks"): momentum made orthogonal."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from tunesmith.base import ConfigError

from .base import Optimizer, embeds, held, is_matrix

HEAD = re.compile(r"(lm_head|embed_out|output)\.weight$")


class Muon(Optimizer):
    """Matrices move equally far in all directions; embeddings, the head and what is no matrix move by AdamW. Made for all weights of a model."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(2e-4, gt=0)
    """Largest step size, reached after warmup; matrices take it times 0.2 sqrt(larger side), which makes steps as large as AdamW's (arXiv:2502.16982)."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Share of the step before that is taken again; Jordan et al. take 0.95."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's, for the rest; those of Adam's paper (arXiv:1412.6980)."""

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """As of every optimizer.

        Raises:
            ConfigError: no matrix learns, or a name in `rates` fits nothing that learns.
        """
        if not any(_hidden(name, one) for name, one in parameters.items()):
            raise ConfigError(
                "optimizer: no matrix inside the layers learns, so muon would be AdamW by another name; take optimizer.kind=adamw, or an adapter "
                "with matrices, such as lora"
            )
        return super().groups(parameters)

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's Muon and AdamW side by side."""
        groups, parts = self.groups(parameters), list[torch.optim.Optimizer]()
        hidden = {id(one) for name, one in parameters.items() if _hidden(name, one)}
        if matrices := _within(groups, hidden):
            parts.append(torch.optim.Muon(matrices, momentum=self.momentum, adjust_lr_fn="match_rms_adamw"))
        if rest := _within(groups, set(map(id, parameters.values())) - hidden):
            parts.append(torch.optim.AdamW(rest, betas=self.betas, fused=True))
        return Together(parts)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """A float32 momentum of each matrix, two moments of the rest."""
        rest = {name: one for name, one in parameters.items() if not _hidden(name, one)}
        return held(parameters, 1) + held(rest, 1)


def _within(groups: list[dict[str, Any]], wanted: set[int]) -> list[dict[str, Any]]:
    """Groups with only some of their parameters; none that would be empty."""
    found = [{**group, "params": [one for one in group["params"] if id(one) in wanted]} for group in groups]
    return [group for group in found if group["params"]]


def _hidden(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and is_matrix(parameter) and not embeds(name) and not HEAD.search(name)


class Together(torch.optim.Optimizer):
    """Optimizers, each over its own weights, as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._join()

    def _join(self) -> None:
        """The parts see the groups and the state of the whole."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of each; the closure computes the loss and the gradients first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved."""
        super().load_state_dict(state_dict)
        self._join()
