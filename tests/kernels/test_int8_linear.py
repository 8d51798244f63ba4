"""Products in int8: the compiled passes against plain operations, the integers exactly, and what is lost by rounding."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, linear

from tunesmith.kernels import int8_linear, native
from tunesmith.kernels.int8_linear import (
    CHUNK,
    Int8Linear,
    Int8Weight,
    dequantise,
    dequantise_reference,
    integer_product,
    integer_product_reference,
    quantise,
    quantise_reference,
    turn,
    turned,
)
from tunesmith.kernels.joint_linear import Joint, Part, joint_linear
from tunesmith.kernels.joint_linear import reference as joint_reference

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_rotation_undoes_itself_and_keeps_products():
    x, y = torch.randn(3, 192), torch.randn(5, 192)
    torch.testing.assert_close(turn(turn(x)), x)
    torch.testing.assert_close(turn(x) @ turn(y).t(), x @ y.t(), atol=1e-4, rtol=1e-5)


def exact(left, right):
    return (left.long() @ right.long()).int()


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (7, 19, 5), (33, 576, 48), (4, 1025, 3), (0, 8, 4)])
def test_sums_of_products_are_exact(rows, depth, columns):
    left = torch.randint(-127, 128, (rows, depth), dtype=torch.int8)
    right = torch.randint(-127, 128, (depth, columns), dtype=torch.int8)
    for one in (integer_product, integer_product_reference):
        assert torch.equal(one(left, right), exact(left, right))
        assert torch.equal(one(left, right.t().contiguous().t()), exact(left, right))


def test_the_largest_sums_are_exact():
    left, right = torch.full((3, 3072), 127, dtype=torch.int8), torch.full((3072, 2), -127, dtype=torch.int8)
    for one in (integer_product, integer_product_reference):
        assert torch.equal(one(left, right), exact(left, right))


@pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 19, 64, 576])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_compiled_passes_are_the_plain_ones(dtype, width, scaled):
    x, factor = torch.randn(9, width + 3).to(dtype)[:, :width], torch.rand(width) + 0.5 if scaled else None
    codes, scale = quantise(x, factor, turned(width))
    expected, expected_scale = quantise_reference(x, factor, turned(width))
    torch.testing.assert_close(scale, expected_scale)
    apart = (codes.int() - expected.int()).abs()  # a number in the middle between two may go either way
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.01
    sums = torch.randint(-999, 1000, (9, width), dtype=torch.int32)
    out = torch.randn(9, width + 2).to(dtype)
    slow = out.clone()
    dequantise(sums, scale, factor, out[:, :width], turned(width))
    dequantise_reference(sums, scale, factor, slow[:, :width], turned(width))
    torch.testing.assert_close(out, slow, atol=1e-4, rtol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "reference"])
def test_rows_of_zeros_stay_zero_and_what_is_not_finite_shows(compiled):
    x = torch.randn(4, 64)
    x[1], x[2, 5], x[3, 7] = 0, float("nan"), float("inf")
    weight, out = Int8Weight.of(torch.randn(8, 64)), torch.zeros(4, 8)
    if compiled:
        weight.add_product(x, out)
    else:
        with native.disabled():
            weight.add_product(x, out)
    assert out[0].isfinite().all()
    assert torch.equal(out[1], torch.zeros(8))
    assert not out[2:].isfinite().any()


def test_a_weight_is_as_near_as_eight_bits_allow():
    weight = torch.randn(40, 128)
    held = Int8Weight.of(weight)
    found = held.dequantised(torch.float32)
    step = turn(weight).abs().amax(1) / 127
    assert ((turn(found) - turn(weight)).abs() <= 0.5001 * step[:, None]).all()
    again = Int8Weight.of(found)  # what is on the grid already stays there
    assert torch.equal(again.codes_OI, held.codes_OI)


def test_an_outlying_channel_does_not_cost_the_others_their_range():
    x, weight = torch.randn(64, 256), torch.randn(32, 256)
    x[:, 3] *= 100
    weight[:, 3] = 0  # the outlier itself contributes nothing: all that is left is its effect on the others
    exact_TO, out = x @ weight.t(), torch.zeros(64, 32)
    Int8Weight.of(weight).add_product(x, out)
    codes, scale = quantise_reference(x, None, False)
    plain = (codes * scale[:, None]) @ weight.t()
    error = lambda found: float((found - exact_TO).norm() / exact_TO.norm())  # noqa: E731
    assert error(out) < 0.3 * error(plain)


def joint(dtype, inputs, outputs, rank, bias):
    """Two layers, the first of which has a correction, with the base in int8."""
    first = outputs - outputs // 2
    down, up = torch.randn(rank, inputs), torch.randn(first, rank) / 10
    held = Int8Weight.of(torch.randn(outputs, inputs) / inputs**0.5)
    corrections = torch.zeros(outputs, rank)
    corrections[:first] = 0.5 * up
    leaves = [one.requires_grad_() for one in (down, up)]
    parts = (Part(slice(0, first), slice(0, rank), 0.5), Part(slice(first, outputs), slice(rank, rank), 1.0))
    bias_O = torch.randn(outputs).to(dtype) if bias else None
    halves = (None, None) if bias_O is None else (bias_O[:first], bias_O[first:])
    learnt = (None, halves[0], *leaves, None, None, halves[1], None, None, None)
    return Joint(corrections.to(dtype), bias_O, down.detach().to(dtype), parts, learnt, held)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(9, 19, 11), (CHUNK + 5, 128, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_weight_it_stands_for(dtype, rows, inputs, outputs, bias):
    both, rank = joint(dtype, inputs, outputs, 4, bias), 4
    found = []
    x_TI = torch.randn(rows, inputs).to(dtype)
    tilt = torch.randn(rows, outputs)
    for fast in (True, False):
        x = x_TI.clone().requires_grad_()
        out = joint_linear(nn.functional.pad(x, (0, rank)), both) if fast else joint_reference(x, both)
        (out.float() * tilt).sum().backward()
        leaves = [one for one in both.learnt if one is not None and one.requires_grad]
        found.append([out.detach(), x.grad, *(one.grad.clone() for one in leaves)])
        for leaf in leaves:
            leaf.grad = None
    for one, other in zip(*found, strict=True):
        assert cosine_similarity(one.double().flatten(), other.double().flatten(), 0) > 0.9995
        assert float((one - other).double().norm() / other.double().norm()) < 0.03


def test_a_small_correction_is_not_lost():
    """It is added in float32 to the product of the base and rounded with it, once."""
    x = torch.randn(256, 64).bfloat16()
    held, down, up = Int8Weight.of(torch.randn(64, 64)), torch.randn(8, 64), torch.full((64, 8), 2e-3)
    parts, learnt = (Part(slice(0, 64), slice(0, 8), 1.0),), (None, None, down, up, None)
    filled = nn.functional.pad(x, (0, 8))
    without = joint_linear(filled, Joint(torch.zeros(64, 8).bfloat16(), None, down.bfloat16(), parts, learnt, held))
    with_it = joint_linear(filled, Joint(up.bfloat16(), None, down.bfloat16(), parts, learnt, held))
    expected = x.float() @ down.t() @ up.t()
    share = ((with_it.float() - without.float()) * expected).sum() / expected.square().sum()
    assert abs(float(share) - 1) < 0.1


def test_the_layer_by_itself_is_its_plain_form():
    layer = nn.Linear(128, 8).requires_grad_(False)
    held = Int8Linear(layer, torch.float32)
    x = torch.randn(5, 128)
    torch.testing.assert_close(held(x), held.plain()(x))
    assert held.weight.dtype == torch.int8
    assert float((held(x) - linear(x, layer.weight, layer.bias)).norm() / layer(x).norm()) < 0.02


def test_without_instructions_for_int8_the_result_is_the_same(monkeypatch):
    weight, x = Int8Weight.of(torch.randn(8, 1088)), torch.randn(6, 1088)
    outs = [torch.zeros(6, 8) for _ in range(2)]
    weight.add_product(x, outs[0])
    monkeypatch.setattr(int8_linear, "multiplies_int8", lambda: False)
    weight.add_product(x, outs[1])
    assert torch.equal(*outs)
