"""Hybrid fine-tuning (Ma, Yu and Huang, 2026, arXiv:2604.09940): the base moves by forward passes alone, the adapter by its gradient, both at once."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.kernels.arena import kept, kept_together
from tunesmith.kernels.noise import Noise, perturb

from .base import Optimizer
from .moves import MOVES, SEEDS, Moving, places

FILE = "base_moves.safetensors"
"""Stands beside an adapter that learnt while its base moved."""


class Hybrid(Optimizer):
    """The base follows its adapter for the price of one forward pass a step. What the paper leaves open is chosen here: all frozen weights move, by one
    direction, `epsilon` away, and nothing but their moves is kept."""

    kind: Literal["hybrid"] = "hybrid"
    moves_frozen: ClassVar[bool] = True
    learning_rate: float = Field(1e-3, ge=0)
    """Of the adapter, by plain gradient descent; 1e-3 in the paper. 0 holds it still, and the base then knows no schedule."""
    base_rate: float = Field(1e-6, ge=0)
    """Step of the base along the direction for each unit of slope; 1e-6 in the paper, larger ones diverge. 0 holds it still."""
    epsilon: float = Field(1e-3, gt=0)
    """How far the base is moved, in each weight, to see the slope; the paper leaves it open, 1e-3 is MeZO's (arXiv:2305.17333)."""
    noise: Noise = "normal"
    """What a direction is made of: normal numbers, as in the paper, or signs, which are cheaper."""

    @model_validator(mode="after")
    def _something_moves(self) -> Self:
        if not (self.learning_rate or self.base_rate):
            raise ValueError("learning_rate and base_rate are both 0, so nothing moves; raise one")
        return self

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The adapter's part alone."""
        return self.over(parameters, {})

    def over(self, parameters: Mapping[str, nn.Parameter], frozen: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Ours."""
        return TorchHybrid(self.groups(parameters), list(frozen.values()), self)


class TorchHybrid(Moving, torch.optim.SGD):
    """Algorithm 1 of the paper; what it notes are the scales of the base's moves."""

    FILE = FILE

    def __init__(self, groups: list[dict[str, Any]], base: list[nn.Parameter], spec: Hybrid) -> None:
        super().__init__(groups, lr=spec.learning_rate, fused=True)
        self.base, self.spec = places(base), spec
        rates = [float(group["lr"]) for group in self.param_groups]
        self.leading, self.full_rate = rates.index(max(rates)), max(rates)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Both move from where they are; the closure, called first without and then with gradients, computes the loss on the same random numbers."""
        assert closure is not None
        random = torch.get_rng_state()
        seed = int(torch.randint(2**62, ()))
        torch.set_rng_state(random)
        moved = self._tried(closure, seed) if self.base and self.spec.base_rate else None
        torch.set_rng_state(random)
        with torch.enable_grad():
            loss = closure()
        super().step()
        if moved is not None:
            slope = float(moved - loss) / self.spec.epsilon
            rate = self.spec.base_rate * self._share()
            self._move(seed, -rate * slope)
            self.note(seed, -rate * slope)
        return loss

    def _share(self) -> float:
        """Of the full rates, as the schedule has it."""
        now = float(self.param_groups[self.leading]["lr"])
        return now / self.full_rate if self.full_rate else 1.0

    def _tried(self, closure: Callable[[], Tensor], seed: int) -> Tensor:
        """The loss with the base moved by epsilon; its copy lies where the backward pass keeps its tensors later."""
        with torch.enable_grad(), kept_together():
            copies = [kept(one.detach(), 1, one.numel()) for one in self.base]
        for one, copy in zip(self.base, copies, strict=True):
            copy.view_as(one).copy_(one)
        try:
            self._move(seed, self.spec.epsilon)
            return closure()
        finally:
            for one, copy in zip(self.base, copies, strict=True):
                one.copy_(copy.view_as(one))

    def _move(self, seed: int, scale: float) -> None:
        move(self.base, seed, scale, self.spec.noise)

    def about(self) -> dict[str, str]:
        """What directions are made of."""
        return {"noise": self.spec.noise}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved; the base, which must stand where it began, is moved again."""
        super().load_state_dict(state_dict)
        for seed, scale in zip(*(one.tolist() for one in self.moves), strict=True):
            self._move(seed, scale)

    @torch.no_grad()
    def reset(self, base: Iterable[Tensor]) -> None:
        """Put the base back to where it began, all of its weights in order."""
        for one, began in zip(self.base, base, strict=True):
            one.copy_(began)


@torch.no_grad()
def move(base: Mapping[nn.Parameter, int], seed: int, scale: float, noise: Noise) -> None:
    """base += scale z(seed), in place."""
    for one, place in base.items():
        perturb(one.data, one.data, seed, place, keep=1.0, scale=scale, noise=noise)


def follow(base: list[nn.Parameter], folder: Path) -> None:
    """Move a base, in the order of its parameters, as it moved while the adapter in this folder learnt; nothing if it did not.

    Raises:
        ModelError: it is not in float32, in which its moves would be lost.
    """
    if not (folder / FILE).exists():
        return
    if any(one.dtype != torch.float32 for one in base):
        raise ModelError(f"{folder}: its base moved while it learnt; load the model in fp32 to move it again")
    with safe_open(folder / FILE, "pt") as file:
        noise = file.metadata()["noise"]
    found = load_file(folder / FILE)
    starts = places(base)
    for seed, scale in zip(found[SEEDS].tolist(), found[MOVES].tolist(), strict=True):
        move(starts, seed, scale, noise)
