"""A frozen linear layer whose weight is kept in four bits: NormalFloat with double quantisation (QLoRA; Dettmers et al., 2023, arXiv:2305.14314).

Blocks of 64 numbers are divided by their largest and brought to the nearest of 16 quantiles of a normal distribution; the blocks' scales are in turn
kept in eight bits, 256 together, less their mean. A number so takes 4 + 8/64 + 32/(64 256) = 4.127 bits. Bits lie as bitsandbytes has them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from . import native
from .blockwise import blocks, dequantise, nearest, quantise
from .quantised_linear import Quantised, QuantisedLinear

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""What the codes stand for (QLoRA, appendix E; `native/nf4.h` has them too)."""
BLOCK, GROUP = 64, 256
"""Numbers with one scale, and scales with one scale."""
PIECE = 1 << 22
"""Numbers brought to codes or back at a time by plain operations, which take some ten times the memory of the codes."""


@cache
def levels(device: torch.device) -> Tensor:
    """`LEVELS`, float32."""
    return torch.tensor(LEVELS, device=device)


@dataclass(frozen=True)
class NF4Weight(Quantised):
    """A weight of some shape [O, I], its numbers in one row: blocks need not end where rows do."""

    shape: torch.Size
    codes_N: Tensor
    """uint8 [ceil(O I / 2), 1]: two codes in a byte, the first in the high bits."""
    fine_B: Tensor
    """uint8 [B]: codes of the blocks' scales, less `offset`."""
    coarse_G: Tensor
    """float32 [ceil(B / 256)]: scales of those."""
    offset: Tensor
    """float32 []: their mean."""

    @classmethod
    def of(cls, weight_OI: Tensor) -> "NF4Weight":
        """The nearest to a weight."""
        codes_N, scale_B = _codes(weight_OI.detach())
        offset = scale_B.mean()
        return cls(weight_OI.shape, codes_N, *quantise(scale_B - offset, GROUP), offset)

    def scales(self) -> Tensor:
        """Of the blocks, float32 [B]."""
        return dequantise(self.fine_B, self.coarse_G, GROUP) + self.offset

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """W [O, I] as plain numbers."""
        out_OI = self.codes_N.new_empty(self.shape, dtype=dtype)
        self.write(out_OI)
        return out_OI

    def joined(self, tail_OR: Tensor) -> Tensor:
        """[W | tail] [O, I + R], in the tail's dtype."""
        return NF4Stack((self,), self.codes_N).joined(tail_OR)

    def write(self, out_OI: Tensor) -> None:
        """W as plain numbers into a matrix whose rows may lie apart."""
        if native.serves(out_OI) and out_OI.stride(1) == 1:
            rows, width = self.shape
            native.run("nf4", out_OI.dtype, self.codes_N, self.scales(), out_OI, out_OI.stride(0), rows, width)
        elif self.codes_N.is_cuda and find_spec("bitsandbytes"):
            out_OI.copy_(by_library(self, out_OI.dtype))
        else:
            write_reference(self, out_OI)


def write_reference(weight: NF4Weight, out_OI: Tensor) -> None:
    """`NF4Weight.write` by plain operations."""
    flat = out_OI if out_OI.is_contiguous() else torch.empty_like(out_OI, memory_format=torch.contiguous_format)
    for out, codes, scale_B in _pieces(flat, weight.codes_N, weight.scales()):
        both = torch.stack([codes >> 4, codes & 15], 1).int()
        values = blocks(levels(out.device)[both].view(-1)[: out.numel()], BLOCK)
        out.copy_((values * scale_B[:, None]).view(-1)[: out.numel()])
    if flat is not out_OI:
        out_OI.copy_(flat)


def by_library(weight: NF4Weight, dtype: torch.dtype) -> Tensor:
    """`NF4Weight.dequantised` by bitsandbytes, which has it compiled for GPUs."""
    import bitsandbytes  # noqa: F401  (registers the operation)

    call = torch.ops.bitsandbytes.dequantize_4bit.default
    found: Tensor = call(weight.codes_N, weight.scales(), BLOCK, "nf4", (weight.shape.numel(),), dtype)
    return found.view(weight.shape)


def _codes(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 codes, two in a byte, and scales of blocks."""
    count = weight_OI.numel()
    codes_N = weight_OI.new_empty(-(-count // 2), 1, dtype=torch.uint8)
    scale_B = weight_OI.new_empty(-(-count // BLOCK), dtype=torch.float32)
    if weight_OI.is_meta:
        return codes_N, scale_B
    for numbers, into, scale in _pieces(weight_OI.reshape(-1), codes_N, scale_B):
        found, most_B = nearest(blocks(numbers, BLOCK), levels(numbers.device))
        first, second = found.view(-1, 2).t()
        into.copy_((first << 4 | second)[: len(into)])
        scale.copy_(most_B)
    return codes_N, scale_B


def _pieces(numbers: Tensor, codes_N: Tensor, scale_B: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of numbers, of their codes and of their blocks' scales, a piece of each at a time."""
    sizes = ((numbers, PIECE), (codes_N, PIECE // 2), (scale_B, PIECE // BLOCK))
    return zip(*(torch.split(each.view(-1), size) for each, size in sizes), strict=True)


@dataclass(frozen=True)
class NF4Stack(Quantised):
    """Weights with the same inputs, their rows one after another."""

    parts: Sequence[NF4Weight]
    codes_N: Tensor
    """uint8 [sum of the parts', 1], of which theirs are views."""

    @classmethod
    def of(cls, weights: Sequence[NF4Weight]) -> "NF4Stack":
        """Weights' codes one after another."""
        codes_N = torch.cat([one.codes_N for one in weights])
        pieces = torch.split(codes_N, [len(one.codes_N) for one in weights])
        return cls([replace(one, codes_N=piece) for one, piece in zip(weights, pieces, strict=True)], codes_N)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """W [O, I] as plain numbers."""
        return self.joined(self.parts[0].codes_N.new_empty(self._rows, 0, dtype=dtype))

    def joined(self, tail_OR: Tensor) -> Tensor:
        """[W | tail] [O, I + R], in the tail's dtype."""
        width, row = self.parts[0].shape[1], 0
        out_OJ = tail_OR.new_empty(self._rows, width + tail_OR.shape[1])
        for part in self.parts:
            part.write(out_OJ[row : row + part.shape[0], :width])
            row += part.shape[0]
        out_OJ[:, width:] = tail_OR
        return out_OJ

    @property
    def _rows(self) -> int:
        return sum(part.shape[0] for part in self.parts)


class NF4Linear(QuantisedLinear):
    """x W^T + b with W in four bits, never to learn."""

    fine: Tensor
    coarse: Tensor
    offset: Tensor

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        found = NF4Weight.of(layer.weight)
        self.weight = nn.Parameter(found.codes_N, requires_grad=False)
        for name, tensor in (("fine", found.fine_B), ("coarse", found.coarse_G), ("offset", found.offset)):
            self.register_buffer(name, tensor)

    @property
    def held(self) -> NF4Weight:
        """Its weight."""
        shape = torch.Size((self.out_features, self.in_features))
        return NF4Weight(shape, self.weight.detach(), self.fine, self.coarse, self.offset)
