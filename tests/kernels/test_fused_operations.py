"""Every compiled operation against its torch reference: values and gradients, at widths that no vector register divides."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from references import DTYPES, compare

from tunesmith.kernels import native
from tunesmith.kernels.add_norm import add_norm
from tunesmith.kernels.add_norm import reference as add_norm_reference
from tunesmith.kernels.forest_attention import Heads, rotate, rotate_reference
from tunesmith.kernels.head import candidate_logps, token_logps
from tunesmith.kernels.head import reference as head_reference
from tunesmith.kernels.products import EXACT, fast_float32
from tunesmith.models.gguf import cache_folder

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
