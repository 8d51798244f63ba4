"""A frozen linear layer whose weight is kept in int8, and its products with rows that are rounded to int8 as they come.

Both sides are rotated first, block by block, by a Hadamard matrix: the product is the same, and what is rounded has no channel that stands out
from the others and takes the range from them (QuaRot, Ashkboos et al., 2024, arXiv:2404.00456). The products themselves are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from . import native
from .quantised_linear import Quantised, QuantisedLinear

LARGEST = 127
BLOCK = 64
"""Numbers that a rotation mixes; rows that are no multiple of it are left as they are."""
CHUNK = 512
"""Rows multiplied at a time: their sums, four bytes each, then stay in a cache until they are read."""
EXACT = 1024
"""So many products of two int8 numbers have a sum that float32 holds exactly."""


@dataclass(frozen=True)
class Int8Weight(Quantised):
    """A weight W [O, I] as scale * codes, rotated along I."""

    codes_OI: Tensor
    """int8."""
    scale_O: Tensor
    """float32."""

    @classmethod
    def of(cls, weight_OI: Tensor) -> "Int8Weight":
        """The nearest to a weight."""
        return cls(*quantise_reference(weight_OI.detach(), None, turned(weight_OI.shape[1])))

    @classmethod
    def stacked(cls, weights: Sequence["Int8Weight"]) -> "Int8Weight":
        """Several with the same inputs, their rows one after another."""
        return cls(torch.cat([one.codes_OI for one in weights]), torch.cat([one.scale_O for one in weights]))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """W [O, I] as plain numbers."""
        weight = self.codes_OI * self.scale_O[:, None]
        return (turn(weight) if turned(weight.shape[1]) else weight).to(dtype)

    def add_product(self, x_TI: Tensor, out_TO: Tensor) -> None:
        """Add x W^T, x rounded row by row, to what `out` holds; the sum is rounded once."""
        _add(x_TI, None, self.codes_OI.t(), self.scale_O, out_TO, (turned(x_TI.shape[1]), False))

    def add_back(self, grad_TO: Tensor, out_TI: Tensor) -> None:
        """Add g W likewise. The scales of W go into g before it is rounded, so that one copy of W serves both products."""
        _add(grad_TO, self.scale_O, self.codes_OI, None, out_TI, (False, turned(out_TI.shape[1])))


def _add(x_TK: Tensor, factor_K: Tensor | None, right_KN: Tensor, scale_N: Tensor | None, out_TN: Tensor, turns: tuple[bool, bool]) -> None:  # fmt: skip
    before, behind = turns
    for x, out in zip(torch.split(x_TK, CHUNK), torch.split(out_TN, CHUNK), strict=True):
        codes, scale = quantise(x, factor_K, before)
        dequantise(integer_product(codes, right_KN), scale, scale_N, out, behind)


def turned(width: int) -> bool:
    """Whether rows of this width are rotated."""
    return width % BLOCK == 0


def turn(x_TI: Tensor) -> Tensor:
    """Every block times the orthonormal Hadamard matrix in Sylvester's order, which is its own inverse."""
    matrix: Tensor = torch.ones(1, 1, device=x_TI.device)
    while len(matrix) < BLOCK:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    found: Tensor = (x_TI.reshape(-1, BLOCK) @ (matrix / BLOCK**0.5)).view(x_TI.shape)
    return found


def quantise(x_TI: Tensor, factor_I: Tensor | None, turning: bool) -> tuple[Tensor, Tensor]:
    """int8 codes [T, I] and float32 scales [T] of x * factor, rotated or not; a row that is not finite has a scale that is not."""
    if not native.serves(x_TI):
        return quantise_reference(x_TI, factor_I, turning)
    if x_TI.stride(1) != 1:
        x_TI = x_TI.contiguous()
    rows, width = x_TI.shape
    codes, scale = x_TI.new_empty(rows, width, dtype=torch.int8), x_TI.new_empty(rows, dtype=torch.float32)
    native.run("quantise", x_TI.dtype, x_TI, x_TI.stride(0), factor_I, codes, scale, rows, width, int(turning))
    return codes, scale


def quantise_reference(x_TI: Tensor, factor_I: Tensor | None, turning: bool) -> tuple[Tensor, Tensor]:
    """The same by plain operations."""
    wide = x_TI.float() if factor_I is None else x_TI.float() * factor_I
    wide = turn(wide) if turning else wide
    most = wide.abs().amax(1, keepdim=True)
    codes = (wide * torch.where(most > 0, LARGEST / most, 0.0)).round()
    return codes.nan_to_num(0).to(torch.int8), most[:, 0] / LARGEST


def dequantise(sums_TO: Tensor, row_T: Tensor, column_O: Tensor | None, out_TO: Tensor, turning: bool) -> None:
    """Add sums * row * column, rotated or not, to `out`."""
    if native.serves(out_TO) and out_TO.stride(1) == 1:
        rows, width = sums_TO.shape
        native.run(
            "dequantise", out_TO.dtype, sums_TO, row_T, column_O, out_TO, out_TO.stride(0), rows, width, int(turning)
        )
        return
    dequantise_reference(sums_TO, row_T, column_O, out_TO, turning)


def dequantise_reference(
    sums_TO: Tensor, row_T: Tensor, column_O: Tensor | None, out_TO: Tensor, turning: bool
) -> None:
    """The same by plain operations."""
    wide = sums_TO * (row_T[:, None] if column_O is None else row_T[:, None] * column_O)
    out_TO.copy_(out_TO.float() + (turn(wide) if turning else wide))


@cache
def multiplies_int8() -> bool:
    """Whether the processor has instructions for sums of int8 products; without them oneDNN is slow, or may clip sums."""
    return torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()


def integer_product(left_TK: Tensor, right_KN: Tensor) -> Tensor:
    """Exact int32 [T, N] of int8 matrices."""
    if multiplies_int8() or left_TK.is_meta:
        return torch._int_mm(left_TK, right_KN)
    return integer_product_reference(left_TK, right_KN)


def integer_product_reference(left_TK: Tensor, right_KN: Tensor) -> Tensor:
    """The same by products in float32, each of few enough terms to be exact."""
    sums = left_TK.new_zeros(len(left_TK), right_KN.shape[1], dtype=torch.int32)
    for left, right in zip(torch.split(left_TK, EXACT, 1), torch.split(right_KN, EXACT), strict=True):
        sums += (left.float() @ right.float()).int()
    return sums


class Int8Linear(QuantisedLinear):
    """x W^T + b with W in int8, never to learn. By itself it computes with plain numbers: the twin of `Int8Weight`'s products."""

    scale: Tensor

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        found = Int8Weight.of(layer.weight)
        self.weight = nn.Parameter(found.codes_OI, requires_grad=False)
        self.register_buffer("scale", found.scale_O)

    @property
    def held(self) -> Int8Weight:
        """Its weight."""
        return Int8Weight(self.weight.detach(), self.scale)
