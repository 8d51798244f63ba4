"""A linear layer whose rows are turned by a low-rank correction and scaled by a magnitude of their own."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from .lora_linear import LoRALinear, correction, lora_linear
from .quantised_linear import product, weight_of

TINY = 1e-30
"""What the square of a row's length counts at least: rows that are nothing but zeros have one to divide by."""


class DoRALinear(LoRALinear):
    """`m V / ||V|| x + b`, V = W + s B A, norms taken of each row (Liu et al., 2024, arXiv:2402.09353, eq. 5) and, in the backward, as given (eq. 11)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropped: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, scale, dropped, generator)
        self.magnitude = nn.Parameter(self.norms())

    def begin(self, down_RI: Tensor, up_OR: Tensor) -> None:
        """As with any correction; the layer still starts as its base."""
        super().begin(down_RI, up_OR)
        with torch.no_grad():
            self.magnitude.copy_(self.norms())

    @torch.no_grad()
    def norms(self) -> Tensor:
        """||V|| of each row, float32 [O], by way of products as small as the rank."""
        weight, down, up = weight_of(self.base), self.down, self.scale * self.up
        plain = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()
        crossed = ((weight @ down.to(weight.dtype).t()).float() * up).sum(1)
        own = ((up @ (down @ down.t())) * up).sum(1)
        found: Tensor = (plain + 2 * crossed + own).clamp_min(TINY).sqrt()
        return found

    @property
    def factor(self) -> Tensor:
        """What each output is multiplied by, float32 [O]; differentiable by the magnitude alone."""
        return self.magnitude / self.norms()

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape; the last axis is the layer's input."""
        if not self.enabled:
            plain: Tensor = self.base(x)
            return plain
        factor_O = self.factor
        flat, weight = x.reshape(-1, x.shape[-1]), self.frozen
        if self.training and self.dropout > 0:
            dropped = dropout(flat, self.dropout)
            turned = correction(dropped, self.down, self.up, self.scale).float()
            out = product(flat, weight).float() + (factor_O - 1) * product(dropped, weight).float() + factor_O * turned
        else:
            out = factor_O * lora_linear(flat, weight, None, self.down, self.up, self.scale).float()
        if self.base.bias is not None:
            out = out + self.base.bias
        return out.to(x.dtype).view(*x.shape[:-1], -1)

    def corrected(self, weight_OI: Tensor) -> Tensor:
        """The base's weight, turned and scaled, float32."""
        return self.factor[:, None] * super().corrected(weight_OI)
