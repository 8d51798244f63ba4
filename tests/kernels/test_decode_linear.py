"""Products of the compiled decoding step with weights in few bits against plain operations."""

import pytest
import torch
from torch import nn

from tunesmith.kernels import native
from tunesmith.kernels.decode import Linear, Norm, decode_head
from tunesmith.kernels.int8_linear import (
    Int8Weight,
    dequantise_reference,
    integer_product_reference,
    quantise_reference,
    turned,
)
from tunesmith.kernels.nf4_linear import NF4Linear, NF4Stack

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")

SIZES = [(1, 64, 5), (1, 192, 97), (3, 70, 48), (4, 128, 4), (17, 64, 51), (65, 192, 100)]
"""Columns of the right side, inputs and outputs: whole tiles and what is left of them."""


def beside(rows, width, room, dtype):
    """[s B], b and A."""
    return [torch.randn(*shape).to(dtype) for shape in ((rows, room), (rows,), (room, width))]


def close(found, expected, dtype):
    """Sums in another order, of inputs that were rounded to the same numbers."""
    least = 2e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, atol=least * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", [0, 6])
@pytest.mark.parametrize(("batch", "width", "rows"), SIZES)
def test_int8(batch, width, rows, room, dtype):
    torch.manual_seed(0)
    weight, x = Int8Weight.of(torch.randn(rows, width)), torch.randn(batch, width).to(dtype).float()
    up, bias, down = beside(rows, width, room, dtype)
    found = decode_head(Norm.of(None, 0.0), Linear.few(weight, up, bias, down), x.clone(), dtype)
    codes, scale = quantise_reference(x, None, turned(width))
    expected = bias.float() + (x @ down.float().t()).to(dtype).float() @ up.float().t()
    dequantise_reference(integer_product_reference(codes, weight.codes_OI.t()), scale, weight.scale_O, expected, False)
    close(found, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", [0, 6])
@pytest.mark.parametrize(("batch", "width", "rows"), [size for size in SIZES if size[1] % 64 == 0])
def test_four_bits(batch, width, rows, room, dtype):
    torch.manual_seed(0)
    layers = [NF4Linear(nn.Linear(width, count, bias=False), dtype) for count in (rows - 3, 3)]
    stack, x = NF4Stack.of([layer.held for layer in layers]), torch.randn(batch, width).to(dtype).float()
    up, bias, down = beside(rows, width, room, dtype)
    found = decode_head(Norm.of(None, 0.0), Linear.few(stack, up, bias, down), x.clone(), dtype)
    expected = bias.float() + (x @ down.float().t()).to(dtype).float() @ up.float().t()
    close(found, expected + x @ stack.dequantised(dtype).float().t(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_column_has_the_same_bits_whatever_is_beside_it(dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(51, 192), torch.randn(67, 192)
    layer = NF4Linear(nn.Linear(192, 51, bias=False), dtype)
    up, bias, down = beside(51, 192, 2, dtype)
    for held in (Int8Weight.of(weight), NF4Stack.of([layer.held])):
        linear = Linear.few(held, up, bias, down)
        whole = decode_head(Norm.of(None, 0.0), linear, x.clone(), dtype)
        for start, stop in ((0, 1), (1, 9), (9, 67), (66, 67)):
            assert torch.equal(decode_head(Norm.of(None, 0.0), linear, x[start:stop].clone(), dtype), whole[start:stop])


def test_a_row_that_is_not_finite_shows():
    x = torch.randn(3, 64)
    x[1, 5] = torch.nan
    linear = Linear.few(Int8Weight.of(torch.randn(8, 64)), *beside(8, 64, 0, torch.float32))
    found = decode_head(Norm.of(None, 0.0), linear, x, torch.float32)
    assert found.isfinite().all(1).tolist() == [True, False, True]
