"""A direction of random numbers that is never stored: each is computed from a seed and its place (`native/noise.h`)."""

from typing import Literal

import torch
from torch import Tensor

from . import native

Noise = Literal["normal", "sign"]
KINDS: dict[Noise, int] = {"normal": 0, "sign": 1}
MASK = 0xFFFFFFFF


def perturb(to: Tensor, source: Tensor, seed: int, offset: int, *, keep: float, scale: float, noise: Noise) -> None:
    """to = keep source + scale z, float32, of one shape; `to` may be `source`.

    Args:
        seed: of the direction, below 2^64.
        offset: place of the first number in the direction.
        noise: z is standard normal, or -1 and 1 with equal chance; independent in both cases.
    """
    first, second = keys(seed)
    shapes = [_rows(one) for one in (to, source)]
    if native.serves(to) and native.serves(source) and None not in shapes:
        (rows, columns, ld_to), (_, _, ld_source) = (
            (1, to.numel(), 0) if to.is_contiguous() and source.is_contiguous() else shape or (0, 0, 0)
            for shape in shapes
        )
        arguments = (to, source, rows, columns, ld_to, ld_source, first, second, offset, keep, scale, KINDS[noise])
        native.run("perturb", torch.float32, *arguments)
        return
    to.copy_(keep * source + scale * reference(source.numel(), seed, offset, noise).view_as(source).to(source.device))


def _rows(tensor: Tensor) -> tuple[int, int, int] | None:
    """Rows, columns and numbers from row to row; None if the numbers of a row do not lie side by side."""
    if tensor.is_contiguous():
        columns = tensor.shape[-1] if tensor.ndim else 1
        return tensor.numel() // max(columns, 1), columns, columns
    return (*tensor.shape, tensor.stride(0)) if tensor.ndim == 2 and tensor.stride(1) == 1 else None


def reference(count: int, seed: int, offset: int, noise: Noise) -> Tensor:
    """The direction's numbers [count], float32, by plain operations."""
    first, second = keys(seed)
    place = torch.arange(offset, offset + count, dtype=torch.int64)
    inner = mixed((place & MASK) ^ first)
    bits = mixed((inner + second + (place >> 32) * 0x9E3779B9) & MASK)
    if noise == "sign":
        return 1.0 - 2.0 * (bits >> 31).float()
    uniform = ((bits >> 9).double() + 0.5) * 2.0**-22 - 1.0
    found: Tensor = (torch.erfinv(uniform) * 2.0**0.5).float()
    return found


def keys(seed: int) -> tuple[int, int]:
    """Two 32-bit keys from a seed (Steele et al., 2014, SplitMix64)."""
    wide = (1 << 64) - 1
    x = (seed + 0x9E3779B97F4A7C15) & wide
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & wide
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & wide
    x ^= x >> 31
    return x & MASK, x >> 32


def mixed(x: Tensor) -> Tensor:
    """Scramble 32-bit numbers held in int64; products wrap, and their low half is right all the same."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)
