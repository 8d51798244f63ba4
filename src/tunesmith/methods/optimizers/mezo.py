"""Memory-efficient zeroth-order optimisation (Malladi et al., 2023, arXiv:2305.17333): gradients from two forward passes, none backward."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from tunesmith.kernels.noise import Noise, perturb

from .base import Optimizer, held


class MeZO(Optimizer):
    """The slope along a random direction, made from its seed whenever it is needed. Memory of inference and of a copy of what learns, many more steps; prompts matter.

    What is learnt is float32, and a copy of it is kept during a step: after both passes it is bit for bit what it was before.
    """

    kind: Literal["mezo"] = "mezo"
    gradients: ClassVar[bool] = False
    learning_rate: float = Field(1e-6, gt=0)
    """Step along the direction for each unit of slope: 1e-7 to 1e-6 for all weights, 5e-5 to 1e-4 for LoRA in the paper; small models bear more. Take a constant schedule."""
    epsilon: float = Field(1e-3, gt=0)
    """How far the two passes are from the weights, in each weight; 1e-3 for all weights, 1e-2 for LoRA in the paper."""
    directions: int = Field(1, ge=1)
    """How many are tried and averaged in a step; each costs two forward passes. One in the paper."""
    noise: Noise = "normal"
    """What a direction is made of: normal numbers, as in the paper, or signs (Spall, 1992), which are cheaper."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Ours."""
        settings = {"epsilon": self.epsilon, "directions": self.directions, "noise": self.noise}
        return TorchMeZO(self.groups(parameters), {"lr": self.learning_rate, **settings})

    def scratch_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """The copy."""
        return held(parameters, 1)


class Move(NamedTuple):
    """A change of weights: w = keep w + scale z(seed)."""

    seed: int
    keep: float
    scale: float


SEEDS, MOVES = "seeds", "moves"
"""State of the first weight: int64 [moves], and float64 [moves, groups, 2] with keep and scale."""


def places(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, int]:
    """Where each parameter begins in a direction through all of them."""
    found, end = {}, 0
    for parameter in parameters:
        found[parameter] = end
        end += parameter.numel()
    return found


class TorchMeZO(torch.optim.Optimizer):
    """Algorithm 1 of the paper. Its whole course is its moves, some bytes for each: `replay` does them again."""

    def __init__(self, groups: Iterable[dict[str, Any]], settings: dict[str, Any]) -> None:
        super().__init__(groups, settings)
        self.offsets = places(parameter for group in self.param_groups for parameter in group["params"])
        self.kept: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Move against the slope; the closure, called without gradients, computes the loss.

        Both passes of a direction draw the same random numbers, those of dropout for example.
        """
        assert closure is not None
        directions = self.param_groups[0]["directions"]
        self._keep()
        try:
            slopes = [self._slope(closure, int(torch.randint(2**62, ()))) for _ in range(directions)]
        finally:
            for parameter, kept in self.kept.items():
                parameter.copy_(kept)
        for place, (seed, slope, _) in enumerate(slopes):
            moves = [
                Move(seed, 1 - group["lr"] * group["weight_decay"] * (place == 0), -group["lr"] * slope / directions)
                for group in self.param_groups
            ]
            self._move(moves)
            self._note(moves)
        return torch.stack([loss for *_, loss in slopes]).mean()

    @torch.no_grad()
    def replay(self) -> None:
        """All moves so far, again: from the weights that training began with to those it came to, bit for bit."""
        state = self.state[self._first]
        for seed, moves in zip(state[SEEDS].tolist(), state[MOVES].tolist(), strict=True):
            self._move([Move(seed, keep, scale) for keep, scale in moves])

    def _keep(self) -> None:
        """A copy of all weights; its room stays, since fresh memory is slow to touch."""
        for parameter in self.offsets:
            if parameter not in self.kept:
                self.kept[parameter] = torch.empty_like(parameter.data)
            self.kept[parameter].copy_(parameter)

    def _slope(self, closure: Callable[[], Tensor], seed: int) -> tuple[int, float, Tensor]:
        """Of a direction: its seed, how the loss changes along it, and the loss."""
        random, losses = torch.get_rng_state(), []
        epsilon = self.param_groups[0]["epsilon"]
        for side in (epsilon, -epsilon):
            for group in self.param_groups:
                for parameter in group["params"]:
                    self._perturb(parameter, self.kept[parameter], Move(seed, 1.0, side), group["noise"])
            torch.manual_seed(seed)
            losses.append(closure())
        torch.set_rng_state(random)
        return seed, float(losses[0] - losses[1]) / (2 * epsilon), (losses[0] + losses[1]) / 2

    def _move(self, moves: list[Move]) -> None:
        for group, move in zip(self.param_groups, moves, strict=True):
            for parameter in group["params"]:
                self._perturb(parameter, parameter.data, move, group["noise"])

    def _perturb(self, parameter: nn.Parameter, source: Tensor, move: Move, noise: Noise) -> None:
        place = self.offsets[parameter]
        perturb(parameter.data, source, move.seed, place, keep=move.keep, scale=move.scale, noise=noise)

    def _note(self, moves: list[Move]) -> None:
        state = self.state[self._first]
        new = torch.tensor([moves[0].seed]), torch.tensor([[move[1:] for move in moves]], dtype=torch.float64)
        for name, one in zip((SEEDS, MOVES), new, strict=True):
            state[name] = torch.cat([state[name], one]) if name in state else one

    @property
    def _first(self) -> nn.Parameter:
        found: nn.Parameter = self.param_groups[0]["params"][0]
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved; torch would round the seeds to the weights' type."""
        super().load_state_dict(state_dict)
        for place, slots in state_dict["state"].items():
            assert place == 0
            self.state[self._first] = {name: value.clone() for name, value in slots.items()}
