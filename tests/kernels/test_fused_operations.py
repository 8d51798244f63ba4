"""Every compiled operation against its torch reference: values and gradients, at widths that no vector register divides."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.kernels import native
from tunesmith.kernels.add_norm import add_norm
from tunesmith.kernels.add_norm import reference as add_norm_reference
from tunesmith.kernels.forest_attention import Heads, rotate, rotate_reference
from tunesmith.kernels.gated_linear import gated_linear, glu_reference
from tunesmith.kernels.head import candidate_logps, token_logps
from tunesmith.kernels.head import reference as head_reference
from tunesmith.kernels.joint_linear import PARAMETERS, Joint, Part, joint_linear
from tunesmith.kernels.joint_linear import reference as joint_reference
from tunesmith.kernels.products import EXACT, fast_float32
from tunesmith.kernels.stretch import backward_reference, stretch, stretch_backward, stretch_reference
from tunesmith.models.gguf import cache_folder

TESTS = Path(__file__).parents[1]
EXACTLY = {"atol": 2e-5, "rtol": 1e-5}
ROUNDED = {"atol": 3e-2, "rtol": 2e-2}
DTYPES = {torch.float32: EXACTLY, torch.bfloat16: ROUNDED}

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def leaves(*tensors):
    return [None if one is None else one.detach().clone().requires_grad_() for one in tensors]


def compare(fast, slow, tensors, dtype):
    """Run both on the same leaves and hold outputs and gradients against each other."""
    found = []
    for function in (fast, slow):
        mine = leaves(*tensors)
        out = function(*mine)
        outs = out if isinstance(out, tuple) else (out,)
        total = sum((one.float() * torch.linspace(-1, 1, one.numel()).view(one.shape)).sum() for one in outs)
        total.backward()
        found.append([*(one.detach() for one in outs), *(one.grad for one in mine if one is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 19, 64])
@pytest.mark.parametrize("updated", [True, False])
@pytest.mark.parametrize("room", [0, 3])
def test_add_norm(dtype, width, updated, room):
    tensors = torch.randn(7, width), torch.randn(7, width).to(dtype) if updated else None, torch.rand(width) + 0.5
    compare(
        lambda x, y, w: add_norm(x, y, w, 1e-5, dtype, room),
        lambda x, y, w: add_norm_reference(x, y, w, 1e-5, dtype, room),
        tensors,
        dtype,
    )


def test_add_norm_of_rows_that_do_not_lie_together():
    wide = torch.randn(5, 24)
    compare(
        lambda x, w: add_norm(x[:, :8], None, w, 1e-5, torch.float32),
        lambda x, w: add_norm_reference(x[:, :8], None, w, 1e-5, torch.float32),
        (wide, torch.rand(8) + 0.5),
        torch.float32,
    )


def test_second_derivatives_are_refused():
    x = torch.randn(3, 8, requires_grad=True)
    _, normed = add_norm(x, None, torch.ones(8), 1e-5, torch.float32)
    (gradient,) = torch.autograd.grad(normed.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_add_norm_when_only_the_norm_is_used():
    tensors = torch.randn(5, 8), torch.randn(5, 8), torch.rand(8) + 0.5
    compare(
        lambda *t: add_norm(*t, 1e-5, torch.float32)[1],
        lambda *t: add_norm_reference(*t, 1e-5, torch.float32)[1],
        tensors,
        torch.float32,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [8, 6])
def test_rotation(dtype, turned):
    heads, joint = Heads(4, 2, 8), torch.randn(5, 64).to(dtype)
    cosine, sine = torch.randn(2, 5, turned // 2).repeat(1, 1, 2)  # as rotary embeddings have it: both halves alike
    expected = rotate_reference(joint, cosine, sine, heads)
    found = joint.clone()
    rotate(found, cosine, sine, heads)
    torch.testing.assert_close(torch.cat(heads.split(found)[:2]), expected, **DTYPES[dtype])
    assert torch.equal(heads.split(found)[2], heads.split(joint)[2])
    norm = (cosine.square() + sine.square()).sqrt()
    rotate(found, cosine / norm, sine / norm, heads, -1.0)
    rotate(found, cosine / norm, sine / norm, heads)
    torch.testing.assert_close(torch.cat(heads.split(found)[:2]), expected, **DTYPES[dtype])


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learns", [True, False])
def test_token_logps(dtype, learns, monkeypatch):
    monkeypatch.setattr("tunesmith.kernels.head.CHUNK", 4)
    hidden, weight = torch.randn(11, 8).to(dtype), torch.randn(37, 8)
    token = torch.randint(0, 37, (11,))
    weight = weight if learns else weight.to(dtype)
    tensors = (hidden, weight) if learns else (hidden,)
    rest = () if learns else (weight,)
    compare(lambda *t: token_logps(*t, *rest, token), lambda *t: head_reference(*t, *rest, token), tensors, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_candidate_logps(dtype, learns, temperature, monkeypatch):
    """With a token named twice."""
    monkeypatch.setattr("tunesmith.kernels.head.CHUNK", 4)
    hidden, weight = torch.randn(11, 8).to(dtype), torch.randn(37, 8)
    token = torch.randint(0, 37, (11, 3))
    token[:, 2] = token[:, 0]
    weight = weight if learns else weight.to(dtype)
    tensors = (hidden, weight) if learns else (hidden,)
    rest = () if learns else (weight,)

    def slow(hidden, weight):
        logits = torch.nn.functional.linear(hidden, weight.to(dtype)).float() / temperature
        return logits.log_softmax(1).gather(1, token)

    compare(lambda *t: candidate_logps(*t, *rest, token, temperature), lambda *t: slow(*t, *rest), tensors, dtype)


def test_tokens_that_do_not_lie_together_are_read_where_they_are():
    hidden, weight = torch.randn(6, 8), torch.randn(37, 8)
    token = torch.randint(0, 37, (6, 2))[:, 1]
    assert not token.is_contiguous()
    torch.testing.assert_close(token_logps(hidden, weight, token), head_reference(hidden, weight, token))


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_what_is_not_finite_is_passed_on(spoiled):
    """The loop refuses a step by its loss; a kernel that swallowed NaN would hide it."""
    hidden = torch.randn(3, 8)
    hidden[1, 2] = spoiled
    logp = token_logps(hidden, torch.randn(37, 8), torch.tensor([1, 2, 3]))
    assert logp.isfinite().tolist() == [True, False, True]
    _, normed = add_norm(hidden, None, torch.ones(8), 1e-5, torch.float32)
    assert normed[0].isfinite().all()
    assert not normed[1].isfinite().all()


BUILT = [level for level in native.LEVELS if (native.HERE / f"fused-{level}.so").exists()]


@pytest.mark.parametrize("level", [level for level in BUILT if level != native.level()])
def test_every_build_gives_the_same(level, tmp_path):
    """In a process of its own, since the choice is made once; this machine's own is what all other tests run on."""
    names = ("kernels/test_forest_attention.py", "kernels/test_decode_linear.py", "models/test_decoding.py")
    tests = [TESTS / name for name in names]
    code = (
        "import sys, pytest, torch; torch.manual_seed(0)\n"
        "from tunesmith.kernels.head import token_logps, reference\n"
        "from tunesmith.kernels import native\n"
        f"assert native.level() == {level!r}\n"
        "h, w, t = torch.randn(5, 24), torch.randn(301, 24), torch.arange(5)\n"
        "torch.testing.assert_close(token_logps(h, w, t), reference(h, w, t), atol=1e-5, rtol=1e-5)\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', '-k', 'tiles or bf16 or llama or decode_linear', *sys.argv[1:]]))"
    )
    cache = {"TUNESMITH_CACHE": str(cache_folder()), "OMP_NUM_THREADS": "1"}
    environment = {"TUNESMITH_KERNELS": level, "PATH": "", "HOME": str(tmp_path), **cache}
    command = [sys.executable, "-c", code, *map(str, tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_library_that_was_compiled_from_other_files_is_not_used(monkeypatch):
    assert native.used() == native.level()
    monkeypatch.setattr(native, "LAYOUT", native.LAYOUT + 1)
    assert native._library.__wrapped__() is None


def test_the_operations_can_be_turned_off():
    with native.disabled():
        assert not native.serves(torch.zeros(1))
    assert native.serves(torch.zeros(1))


def test_fast_float32_products_are_float32():
    fast_float32()
    left, right = torch.randn(64, 512), torch.randn(512, 64)
    exact = left.double() @ right.double()
    assert float(((left @ right).double() - exact).norm() / exact.norm()) <= EXACT
