import pytest
import torch

from tunesmith.kernels.lora_linear import correction, lora_linear, reference

SCALE = 1.7


def inputs(dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, learns=True):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(learns)

    return draw(7, 5), draw(6, 5, learns=False), draw(6) if bias else None, draw(2, 5), draw(6, 2)


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_formula(bias):
    found = []
    for fast in (True, False):
        x, weight, b, down, up = inputs(bias=bias)
        out = lora_linear(x, weight, b, down, up, SCALE) if fast else reference(x, weight, b, down, up, SCALE)
        out.square().sum().backward()
        found.append([out.detach(), *(tensor.grad for tensor in (x, b, down, up) if tensor is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    """In double precision; A's and B's gradients are rounded to single precision, as the weights they are for."""
    x, weight, bias, down, up = inputs(torch.float64)

    def function(x, bias, down, up):
        return lora_linear(x, weight, bias, down, up, SCALE)

    assert torch.autograd.gradcheck(function, (x, bias, down, up), atol=1e-4, rtol=1e-5)


def test_the_reference_is_the_layer_plus_the_correction():
    x, weight, bias, down, up = inputs()
    whole = x @ (weight + SCALE * up @ down).T + bias
    torch.testing.assert_close(reference(x, weight, bias, down, up, SCALE), whole)
    torch.testing.assert_close(torch.nn.functional.linear(x, weight, bias) + correction(x, down, up, SCALE), whole)


def test_what_does_not_learn_gets_no_gradient():
    x, weight, bias, down, up = inputs()
    lora_linear(x.detach(), weight, bias.detach(), down, up, SCALE).sum().backward()
    assert x.grad is None
    assert weight.grad is None
    assert down.grad is not None
    assert up.grad is not None


def test_in_bf16_a_small_correction_is_not_lost():
    """Rounded apart, a correction below half a unit of the base output's last place leaves no trace; in one sum it does."""
    torch.manual_seed(0)
    x = torch.randn(256, 64).bfloat16()
    weight = torch.randn(64, 64).bfloat16()
    down, up = torch.randn(8, 64), torch.full((64, 8), 2e-3)
    base = torch.nn.functional.linear(x.double(), weight.double())
    exact = reference(x.double(), weight.double(), None, down.double(), up.double(), 1.0) - base

    def kept(out):
        """Share of the correction that arrives."""
        return float(((out.double() - base) * exact).sum() / (exact * exact).sum())

    together = lora_linear(x, weight, None, down, up, 1.0)
    apart = reference(x, weight, None, down, up, 1.0)
    error = lambda out: float((out.double() - base - exact).square().mean().sqrt())  # noqa: E731
    assert error(together) < 0.8 * error(apart)
    assert abs(kept(together) - 1) < 0.1
