"""Memory-efficient zeroth-order optimisation (Malladi et al., 2023, arXiv:2305.17333): gradients from two forward passes, none backward."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.kernels.noise import Noise, perturb
from tunesmith.models.learnt import read_learnt

from .base import Optimizer, held
from .moves import MOVES, SEEDS, Moving, places

FILE = "moves.safetensors"
"""Stands beside what was learnt."""


class MeZO(Optimizer):
    """The slope along a random direction, made from its seed whenever it is needed. Memory of inference and of a copy of what learns, many more steps; prompts matter.

    What is learnt is float32, and a copy of it is kept during a step: after both passes it is bit for bit what it was before. A run is told by its moves, some 24
    bytes each, which stay beside what was learnt as `adapter/moves.safetensors`: `tunesmith.methods.optimizers.mezo.replay` makes the learnt weights of
    them and of those that training began with.
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
        return TorchMeZO(self.groups(parameters), {"lr": self.learning_rate, **settings}, parameters)

    def scratch_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """The copy."""
        return held(parameters, 1)


class Move(NamedTuple):
    """A change of weights: w = keep w + scale z(seed)."""

    seed: int
    keep: float
    scale: float


class TorchMeZO(Moving):
    """Algorithm 1 of the paper. Of each move and group of weights it notes `keep` and `scale`."""

    FILE = FILE

    def __init__(
        self, groups: Iterable[dict[str, Any]], settings: dict[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        super().__init__(groups, settings)
        self.names = {parameter: name for name, parameter in parameters.items()}
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
            self.note(seed, [move[1:] for move in moves])
        return torch.stack([loss for *_, loss in slopes]).mean()

    def about(self) -> dict[str, str]:
        """What directions are made of, and the names of the weights that they go through, by group."""
        names = [[self.names[parameter] for parameter in group["params"]] for group in self.param_groups]
        return {"directions": json.dumps({"noise": self.param_groups[0]["noise"], "groups": names})}

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


@torch.no_grad()
def replay(parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Move weights as those moved that were learnt in a folder, `adapter/` of a finished run: from what training began with to what it came to, bit for bit.

    Args:
        parameters: what learns, by name, float32: `trainable(loaded.model)` once the adapter is attached as the recipe and its seed say.
        folder: where `moves.safetensors` is: `seeds`, int64 [n], and `moves`, float64 [n, groups, 2], what a group was multiplied by before each move and how
            far it went along the direction; the names of each group's weights, in order, are in its metadata.

    Raises:
        ModelError: it is missing, or others learnt there.
    """
    found = read_learnt(folder / FILE)
    with safe_open(folder / FILE, "pt") as file:
        about = json.loads(file.metadata()["directions"])
    groups = about["groups"]
    if odd := sorted({name for names in groups for name in names} ^ set(parameters)):
        raise ModelError(
            f"{folder}: {odd[0]} learns on one side only; attach the adapter, to the model, that its recipe says"
        )
    starts = places(parameters[name] for names in groups for name in names)
    for seed, moves in zip(found[SEEDS].tolist(), found[MOVES].tolist(), strict=True):
        for names, (keep, scale) in zip(groups, moves, strict=True):
            for one in map(parameters.__getitem__, names):
                perturb(one.data, one.data, seed, starts[one], keep=keep, scale=scale, noise=about["noise"])
