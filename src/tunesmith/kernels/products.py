"""Chooses who multiplies float32 matrices: on processors where MKL is slow, oneDNN is twice as fast and as exact."""

from functools import cache

import torch

EXACT = 1e-6
"""Largest error, relative to the norm, that still counts as float32: MKL leaves a quarter of it."""


@cache
def fast_float32() -> bool:
    """Route float32 products on the CPU through oneDNN, if they stay exact there; whether they now go that way.

    `torch.set_float32_matmul_precision("medium")` does that, but lets processors with bf16 matrix units round inputs to bf16: so the
    error of one product against float64 decides.
    """
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double().t()
    torch.set_float32_matmul_precision("medium")
    error = ((left @ right.t()).double() - exact).norm() / exact.norm()
    if float(error) <= EXACT:
        return True
    torch.set_float32_matmul_precision(before)
    return False
