"""Compiled linear layers, with corrections, magnitudes and gates, against their torch references: values and gradients."""

import pytest
import torch
from references import DTYPES, compare

from tunesmith.kernels import native
from tunesmith.kernels.gated_linear import gated_linear, glu_reference
from tunesmith.kernels.joint_linear import PARAMETERS, Joint, Part, joint_linear
from tunesmith.kernels.joint_linear import reference as joint_reference
from tunesmith.kernels.stretch import backward_reference, stretch, stretch_backward, stretch_reference

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def joint_of(width, outs, ranks, dtype, learns, turned=False):
    """A joint product of layers, each with weight, bias and, where its rank is above 0, a correction and, if `turned`, a magnitude."""
    learnt, parts, row, column = [], [], 0, 0
    for out, rank in zip(outs, ranks, strict=True):
        learnt += [
            torch.randn(out, width, dtype=torch.float32 if learns else dtype).requires_grad_(learns),
            torch.randn(out).to(dtype).requires_grad_(learns),
            torch.randn(rank, width).requires_grad_() if rank else None,
            torch.randn(out, rank).requires_grad_() if rank else None,
            (torch.rand(out) + 0.5).requires_grad_() if rank and turned else None,
        ]
        parts.append(Part(slice(row, row + out), slice(column, column + rank), 1.5))
        row, column = row + out, column + rank
    weight, down = torch.zeros(row, width + column, dtype=dtype), torch.zeros(column, width, dtype=dtype)
    for part, (base, _, low, up, _) in zip(parts, zip(*[iter(learnt)] * PARAMETERS, strict=True), strict=True):
        weight[part.rows, :width] = base.detach()
        if low is not None:
            weight[part.rows, width + part.columns.start : width + part.columns.stop] = part.scale * up.detach()
            down[part.columns] = low.detach().to(dtype)
    bias = torch.cat([learnt[PARAMETERS * number + 1].detach() for number in range(len(outs))])
    factors = [
        torch.ones(out) if one is None else one.detach() / 3
        for out, one in zip(outs, learnt[4::PARAMETERS], strict=True)
    ]
    return Joint(weight, bias, down, tuple(parts), tuple(learnt), factor_O=torch.cat(factors) if turned else None)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("ranks", [(2, 3), (0, 2), (0, 0)])
def test_joint_linear(ranks, turned, learns):
    joint, x = joint_of(5, (4, 6), ranks, torch.float32, learns, turned), torch.randn(7, 5)
    found = []
    for fast in (True, False):
        mine = x.clone().requires_grad_()
        for tensor in joint.learnt:
            if tensor is not None:
                tensor.grad = None
        if fast:
            out = joint_linear(torch.nn.functional.pad(mine, (0, joint.room)), joint)
        else:
            out = joint_reference(mine, joint)
        out.square().sum().backward()
        found.append([out.detach(), mine.grad, *(one.grad for one in joint.learnt if one is not None)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_stretching_is_what_it_stands_for(dtype, bias):
    rows, width = 37, 300
    plain, factor, grad = (
        torch.randn(rows, width).to(dtype),
        torch.rand(width) + 0.5,
        torch.randn(rows, width).to(dtype),
    )
    bias_O = torch.randn(width).to(dtype) if bias else None
    out = plain.clone()
    stretch(out, factor, bias_O)
    exact = plain.double() * factor.double() + (0 if bias_O is None else bias_O.double())
    torch.testing.assert_close(out, exact.to(dtype), **DTYPES[dtype])
    slow = plain.clone()
    stretch_reference(slow, factor, bias_O)
    if dtype == torch.bfloat16:  # in float32 compilers may fuse a product with a sum
        assert torch.equal(out, slow)
    for found, expected in zip(
        stretch_backward(grad, out, factor, bias_O), backward_reference(grad, out, factor, bias_O), strict=True
    ):
        torch.testing.assert_close(found, expected, **DTYPES[dtype])
    expected = (grad.double() * plain.double()).sum(0) * factor.double()
    found = stretch_backward(grad, out, factor, bias_O)[1]
    assert float((found.double() - expected).norm() / expected.norm()) < (1e-5 if dtype == torch.float32 else 5e-3)


def test_a_factor_close_to_one_is_not_lost_in_bf16():
    """Its first steps are below half a unit of bf16's last place: rounded to the nearest, no output would follow. By chance they do in the mean."""
    out, factor = torch.rand(4000, 16).bfloat16() + 1, torch.full((16,), 1 + 5e-4)
    before = out.double()
    stretch(out, factor, None)
    assert abs(float((out.double() / before).mean()) - 1 - 5e-4) < 5e-5
    still = before.bfloat16()
    stretch(still, torch.ones(16), None)
    assert torch.equal(still.double(), before)


def test_folded_factors_give_the_same_outputs():
    joint, x = joint_of(5, (4, 6), (2, 3), torch.float32, False, True), torch.randn(7, 5)
    filled = torch.nn.functional.pad(x, (0, joint.room))
    folded = joint.folded()
    assert folded.factor_O is None
    torch.testing.assert_close(joint_linear(filled.clone(), folded), joint_linear(filled, joint))


def test_in_bf16_a_small_correction_is_not_lost():
    """Rounded apart, a correction below half a unit of the base output's last place leaves no trace; in one sum it does."""
    x, joint = torch.randn(256, 64).bfloat16(), joint_of(64, (64,), (8,), torch.bfloat16, False)
    joint.bias_O.zero_()
    joint.learnt[1].data.zero_()
    with torch.no_grad():
        joint.learnt[3].fill_(2e-3)
    joint.weight_OJ[:, 64:] = 1.5 * 2e-3
    exact = (
        x.double() @ joint.learnt[0].double().T
        + 1.5 * x.double() @ joint.learnt[2].double().T @ joint.learnt[3].double().T
    )
    error = lambda out: float((out.detach().double() - exact.detach()).square().mean().sqrt())  # noqa: E731
    assert error(joint_linear(torch.nn.functional.pad(x, (0, 8)), joint)) < 0.8 * error(joint_reference(x, joint))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("rank", "turned"), [(0, False), (2, False), (2, True)])
def test_gated_linear(activation, rank, turned):
    joint = joint_of(19, (4,), (rank,), torch.float32, True, turned)
    gate_up = torch.randn(6, 38) * 4
    compare(
        lambda x: gated_linear(x, activation, joint),
        lambda x: joint_reference(glu_reference(x, activation), joint),
        (gate_up,),
        torch.float32,
    )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_extreme_inputs_stay_finite(activation):
    joint = joint_of(4, (4,), (0,), torch.float32, True)
    x = torch.tensor([[-1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0]]).requires_grad_()
    gated_linear(x, activation, joint).sum().backward()
    assert x.grad.isfinite().all()
