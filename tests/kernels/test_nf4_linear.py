"""Weights in four bits: the published numbers, what rounding costs, and the very bits of bitsandbytes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn.functional import linear

from tunesmith.kernels import native, nf4_linear
from tunesmith.kernels.blockwise import dequantise, dynamic_map, quantise
from tunesmith.kernels.joint_linear import Joint, Part, joint_linear
from tunesmith.kernels.joint_linear import reference as joint_reference
from tunesmith.kernels.lora_linear import LoRALinear
from tunesmith.kernels.nf4_linear import LEVELS, NF4Linear, NF4Stack, NF4Weight, by_library, write_reference

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(64, 256), (96, 80), (7, 19), (5, 31), (3, 64), (1, 1), (2, 16)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("bitsandbytes.functional")


def test_the_levels_are_quantiles_of_a_normal_distribution():
    """QLoRA, equation 4 and appendix E: eight quantiles above zero, seven below, and zero."""
    offset = 1 - (1 / 30 + 1 / 32) / 2
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = sorted([*above, 0.0, *below])
    assert [value / max(expected) for value in expected] == pytest.approx(list(LEVELS), abs=3e-7)


def test_normal_weights_lose_least():
    """QLoRA, table 2: normal float before float before integers, all with a scale for 64 numbers."""
    weight = torch.randn(256, 512)
    rows = weight.view(-1, 64)
    most = rows.abs().amax(1, keepdim=True)
    fp4 = torch.tensor([0, 0.0625, 2, 3, 4, 6, 8, 12]) / 12
    fp4 = torch.cat([-fp4.flip(0), fp4])
    as_float = fp4[(rows[..., None] / most[..., None] - fp4).abs().argmin(-1)] * most
    as_integer = (rows / most * 7).round() * most / 7
    error = lambda found: float((found.view(-1) - weight.view(-1)).square().mean())  # noqa: E731
    mine = error(NF4Weight.of(weight).dequantised(torch.float32))
    assert mine < 0.75 * error(as_integer)
    assert mine < 0.75 * error(as_float)
    single = torch.tensor(LEVELS)[(rows[..., None] / most[..., None] - torch.tensor(LEVELS)).abs().argmin(-1)] * most
    assert mine < 1.01 * error(single)  # scales in eight bits cost next to nothing


def test_a_number_takes_little_more_than_four_bits():
    layer = NF4Linear(nn.Linear(2048, 1024, bias=False, device="meta").to_empty(device="cpu"), torch.bfloat16)
    size = sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))
    assert size / (2048 * 1024) == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256), abs=1e-5)
    scales = sum(tensor.nbytes for tensor in layer.buffers())
    assert 8 * scales / (2048 * 1024) == pytest.approx(0.127, abs=1e-3)  # the paper's figure


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_and_numbers_are_those_of_bitsandbytes(shape, dtype, library):
    weight = torch.randn(shape).to(dtype)
    held = NF4Weight.of(weight)
    codes, state = library.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert torch.equal(held.codes_N, codes)
    assert torch.equal(held.offset, state.offset)
    assert torch.equal(held.coarse_G, state.state2.absmax)
    state.absmax = held.fine_B  # ours are the nearest; on CPUs theirs are now and then the next
    even = weight.numel() // 2 * 2  # theirs would compile a function of its own for the last number
    state.shape = torch.Size([even])  # given rows of 80, theirs takes wrong scales on CPUs
    for state.dtype in DTYPES if even else ():
        expected = library.dequantize_4bit(codes[: even // 2], state).view(-1)
        assert torch.equal(held.dequantised(state.dtype).view(-1)[:even], expected)
        if even == weight.numel():
            assert torch.equal(by_library(held, state.dtype).view(-1), expected)


def test_scales_in_eight_bits_are_the_nearest_and_all_but_always_those_of_bitsandbytes(library):
    x = torch.randn(50_003)
    for signed in (True, False):
        x = x if signed else x.abs()
        levels = library.create_dynamic_map(signed)
        assert torch.equal(dynamic_map(signed, x.device), levels)
        codes, scale = quantise(x, 256, signed)
        theirs, state = library.quantize_blockwise(x, code=levels, blocksize=256)
        assert torch.equal(scale, state.absmax)
        assert (codes != theirs).float().mean() < 0.01
        assert torch.equal(dequantise(theirs, scale, 256, signed), library.dequantize_blockwise(theirs, state))
        mine, other = (dequantise(one, scale, 256, signed) for one in (codes, theirs))
        assert ((mine - x).abs() <= (other - x).abs() * (1 + 1e-5) + 1e-7).all()


@pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_compiled_pass_is_the_plain_one(shape, dtype, monkeypatch):
    monkeypatch.setattr(nf4_linear, "PIECE", 128)
    held, (rows, width) = NF4Weight.of(torch.randn(shape)), shape
    fast, slow = (torch.full((rows, width + 3), 7.0, dtype=dtype) for _ in range(2))
    held.write(fast[:, :width])
    write_reference(held, slow[:, :width])
    assert torch.equal(fast, slow)
    assert (fast[:, width:] == 7).all()


def test_a_large_weight_in_pieces_is_the_same(monkeypatch):
    weight = torch.randn(37, 53)
    whole = NF4Weight.of(weight)
    monkeypatch.setattr(nf4_linear, "PIECE", 256)
    pieces = NF4Weight.of(weight)
    assert torch.equal(whole.codes_N, pieces.codes_N)
    assert torch.equal(whole.fine_B, pieces.fine_B)


def test_blocks_of_zeros_stay_zero():
    weight = torch.randn(16, 64)
    weight[3:5] = 0
    found = NF4Weight.of(weight).dequantised(torch.float32)
    assert not found[3:5].any()
    assert found[:3].any(1).all()
    assert not NF4Weight.of(torch.zeros(4, 64)).dequantised(torch.float32).any()


def test_a_weight_is_as_near_as_four_bits_allow():
    weight = torch.randn(40, 128)
    found = NF4Weight.of(weight).dequantised(torch.float32).view(-1, 64)
    blocks, widest = weight.view(-1, 64), max(high - low for low, high in pairwise(LEVELS))
    most = blocks.abs().amax(1, keepdim=True)
    assert ((found - blocks).abs() <= (widest / 2 + 0.02) * most).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [((64, 128),), ((7, 19), (4, 19)), ((5, 80), (3, 80), (2, 80))])
def test_the_joint_product_is_that_of_the_weight_it_stands_for(dtype, shapes):
    width, rank = shapes[0][1], 4
    stack = NF4Stack.of([NF4Weight.of(torch.randn(shape)) for shape in shapes])
    plain = torch.cat([part.dequantised(dtype) for part in stack.parts])
    assert torch.equal(stack.dequantised(dtype), plain)
    outputs = len(plain)
    down, up = torch.randn(rank, width, requires_grad=True), torch.randn(outputs, rank, requires_grad=True)
    parts, learnt = (Part(slice(0, outputs), slice(0, rank), 0.5),), (None, None, down, up, None)
    corrections = (0.5 * up).detach().to(dtype)
    four = Joint(corrections, None, down.detach().to(dtype), parts, learnt, stack)
    wide = Joint(torch.cat([plain, corrections], 1), None, down.detach().to(dtype), parts, learnt)
    x_TI, tilt, found = torch.randn(9, width).to(dtype), torch.randn(9, outputs), []
    for joint in (four, wide):
        x = x_TI.clone().requires_grad_()
        out = joint_linear(nn.functional.pad(x, (0, rank)), joint)
        (out.float() * tilt).sum().backward()
        found.append([out.detach(), x.grad, down.grad.clone(), up.grad.clone()])
        down.grad = up.grad = None
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)  # the same products of the same numbers
    torch.testing.assert_close(found[0][0], joint_reference(x_TI, four).detach(), atol=0.3 if dtype.itemsize == 2 else 1e-4, rtol=0.02)  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_layer_by_itself_is_its_plain_form_and_keeps_no_plain_numbers(bias, corrected):
    layer = nn.Linear(96, 40, bias=bias).requires_grad_(False)
    held, plain = NF4Linear(layer, torch.float32), NF4Linear(layer, torch.float32).plain()
    kept, found = [], []
    for one in (held, plain):
        if corrected:
            one = LoRALinear(one, 4, 0.5, 0.0, torch.Generator().manual_seed(0))
            nn.init.normal_(one.lora_B, generator=torch.Generator().manual_seed(1))
        x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(2), requires_grad=True)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            out = one(x)
        out.square().sum().backward()
        learnt = [one.lora_A.grad, one.lora_B.grad] if corrected else []
        found.append([out.detach(), x.grad, *learnt])
        kept.append(max(sizes, default=0))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    assert kept[0] < 96 * 40 <= kept[1]
    error = (linear(x, layer.weight, layer.bias) - held(x)).norm() / layer(x).norm()
    assert 0.01 < error.item() < 0.2


def test_weights_beyond_reach_of_a_normal_distribution_are_kept_finite():
    weight = torch.randn(8, 64) * torch.logspace(-30, 30, 8)[:, None]
    found = NF4Weight.of(weight).dequantised(torch.float32)
    assert found.isfinite().all()
    assert math.isclose(float(found[7].abs().max()), float(weight[7].abs().max()), rel_tol=0.01)
