"""Numbers in eight bits: every block has a scale of its own, and codes lie closer the nearer they are to zero (Dettmers et al., 2022, arXiv:2110.02861)."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

TINY = 1e-38
"""Stands for the largest number of a block of zeros, whose codes are zero whatever it is divided by."""


@cache
def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers in [-1, 1], or [0, 1], that codes stand for, float32, in order: each decade down to 1e-7 has half as many as the one above it.

    A decade is cut into equal pieces, of which the map has the middles (Dettmers, 2015, arXiv:1511.04561); it also has 0 and 1.
    """
    found = [torch.tensor([0.0, 1.0])]
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (power + (not signed)) + 1)
        middles = 10.0 ** (power - 6) * ((edges[:-1] + edges[1:]) / 2)
        found += [middles, -middles] if signed else [middles]
    return torch.cat(found).sort().values.to(device)


def nearest(x_BS: Tensor, levels_L: Tensor) -> tuple[Tensor, Tensor]:
    """Of blocks of numbers, int32 codes [B, S] of the nearest level, which are in order, and the largest absolute number, float32 [B]."""
    wide = x_BS.float()
    most_B = wide.abs().amax(1)
    scaled = (wide * (1 / most_B.clamp(min=TINY))[:, None]).clamp_(-1, 1)
    return torch.bucketize(scaled, (levels_L[:-1] + levels_L[1:]) / 2, out_int32=True), most_B


def blocks(x: Tensor, size: int) -> Tensor:
    """A tensor's numbers as rows of `size`, zeros behind the last."""
    flat = x.reshape(-1)
    return pad(flat, (0, -flat.numel() % size)).view(-1, size)


def quantise(x: Tensor, size: int, signed: bool = True) -> tuple[Tensor, Tensor]:
    """uint8 codes of the shape of `x`, and float32 scales [B] of its blocks of `size` numbers."""
    codes, most_B = nearest(blocks(x, size), dynamic_map(signed, x.device))
    return codes.to(torch.uint8).flatten()[: x.numel()].view(x.shape), most_B


def dequantise(codes: Tensor, scale_B: Tensor, size: int, signed: bool = True) -> Tensor:
    """What codes and scales stand for, float32, of the shape of `codes`."""
    values = dynamic_map(signed, codes.device)[blocks(codes, size).int()]
    return (values * scale_B[:, None]).flatten()[: codes.numel()].view(codes.shape)
