"""AdamW whose moments lie in a file, or in eight bits, or both: a piece of them at a time is fetched, moved and put back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tunesmith.kernels.blockwise import dequantise, quantise
from tunesmith.kernels.mapped import MappedFile
from tunesmith.models.gguf import cache_folder

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""What torch calls the running mean and the running square, and whether they may be negative."""
BLOCK = 256
"""Numbers with one scale in eight bits."""
SMALLEST = 4096
"""Weights of fewer numbers have their moments in float32 anyway, as bitsandbytes has it."""
PIECE = 1 << 20
"""Numbers fetched at a time; whole blocks."""


def slots(parameter: Tensor, eight: bool) -> dict[str, Tensor]:
    """What is kept of a weight's moments, by name, as shapes on the meta device."""
    whole = torch.empty(parameter.shape, dtype=torch.float32, device="meta")
    if not eight or parameter.numel() < SMALLEST:
        return dict.fromkeys(MOMENTS, whole)
    codes, scale_B = whole.to(torch.uint8), whole.new_empty(-(-parameter.numel() // BLOCK))
    return {slot: kind for name in MOMENTS for slot, kind in ((name, codes), (f"{name}_scale", scale_B))}


def _piece(tensor: Tensor, number: int, size: int) -> Tensor:
    """A view of so many numbers."""
    found: Tensor = torch.split(tensor.view(-1), size)[number]
    return found


class KeptAdamW(torch.optim.AdamW):
    """The same steps as torch's; in eight bits nearly the same (Dettmers et al., 2022, arXiv:2110.02861)."""

    def __init__(self, groups: list[dict[str, Any]], *, eight: bool, offload: bool, **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        self.parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        wanted = {parameter: slots(parameter, eight) for parameter in self.parameters}
        self.file: MappedFile | None = None
        if offload:
            size = sum(MappedFile.room(kind) for kinds in wanted.values() for kind in kinds.values())
            self.file = MappedFile(size, cache_folder())
        for parameter, kinds in wanted.items():
            take = self.file.take if self.file is not None else self._beside(parameter)
            state = {name: take(kind) for name, kind in kinds.items()}
            self.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **state}

    def _beside(self, parameter: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda kind: torch.zeros_like(kind, device=parameter.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of every weight that has a gradient, in turn; the closure computes the loss and the gradients first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = gradient.contiguous()
        for number in range(-(-parameter.numel() // PIECE)):
            weight, slope = _piece(parameter.data, number, PIECE), _piece(gradient, number, PIECE)
            moments = [self._fetch(state, name, number).to(weight.device) for name in MOMENTS]
            adamw(
                [weight], [slope], moments[:1], moments[1:], [], [state["step"].to(weight.device, copy=True)], fused=True,
                amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
                eps=group["eps"], maximize=False,
            )  # fmt: skip
            for name, moment in zip(MOMENTS, moments, strict=True):
                self._put(state, name, number, moment)
        state["step"] += 1
        self._release(state)

    def _fetch(self, state: dict[str, Tensor], name: str, number: int) -> Tensor:
        """A piece of a moment, float32; what is kept in float32 is no copy."""
        kept = _piece(state[name], number, PIECE)
        if kept.dtype == torch.float32:
            return kept
        return dequantise(kept, _piece(state[f"{name}_scale"], number, PIECE // BLOCK), BLOCK, MOMENTS[name])

    def _put(self, state: dict[str, Tensor], name: str, number: int, moment: Tensor) -> None:
        kept = _piece(state[name], number, PIECE)
        if kept.dtype == torch.float32:
            if kept.data_ptr() != moment.data_ptr():
                kept.copy_(moment)
            return
        codes, scale_B = quantise(moment, BLOCK, MOMENTS[name])
        if not MOMENTS[name]:  # a square that was rounded to zero would make the next step of its weight a leap
            codes = torch.maximum(codes, (moment > 0).to(torch.uint8))
        kept.copy_(codes)
        _piece(state[f"{name}_scale"], number, PIECE // BLOCK).copy_(scale_B)

    def _release(self, state: dict[str, Tensor]) -> None:
        if self.file is not None:
            self.file.release(*(kept for name, kept in state.items() if name != "step"))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read moments into where they lie; torch itself would make float32 of all."""
        own = dict(self.state)
        super().load_state_dict({**state_dict, "state": {}})
        for number, parameter in enumerate(self.parameters):
            found = state_dict["state"].get(number, {})
            for name, kept in own[parameter].items():
                kept.copy_(found[name]) if name in found else kept.zero_()
            self.state[parameter] = own[parameter]
            self._release(own[parameter])
