import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.kernels import native
from tunesmith.kernels.noise import perturb, reference


def made(count, seed, offset=0, noise="normal"):
    to = torch.empty(count)
    perturb(to, torch.zeros(count), seed, offset, keep=1.0, scale=1.0, noise=noise)
    return to


@pytest.mark.parametrize("noise", ["normal", "sign"])
@given(seed=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**40), count=st.integers(1, 500))
def test_compiled_noise_is_the_reference(noise, seed, offset, count):
    torch.testing.assert_close(
        made(count, seed, offset, noise), reference(count, seed, offset, noise), atol=2e-6, rtol=2e-6
    )


@pytest.mark.parametrize("noise", ["normal", "sign"])
def test_it_is_made_of_places_not_of_draws(noise):
    whole = made(40_000, 7, 0, noise)
    pieces = torch.cat([made(12_345, 7, 0, noise), made(27_655, 7, 12_345, noise)])
    assert torch.equal(whole, pieces)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(whole, made(40_000, 7, 0, noise))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("noise", ["normal", "sign"])
def test_directions_are_independent_and_of_unit_variance(noise):
    count = 1_000_000
    first, second = made(count, 1, 0, noise), made(count, 2, 0, noise)
    error = count**-0.5
    assert abs(float(first.mean())) < 4 * error
    assert abs(float(first.square().mean()) - 1) < 6 * error
    assert abs(float((first * second).mean())) < 4 * error
    assert abs(float((first[1:] * first[:-1]).mean())) < 4 * error
    if noise == "normal":
        for point in (-3.0, -1.5, -0.5, 0.0, 0.7, 2.0, 3.5):
            share = 0.5 * (1 + float(torch.erf(torch.tensor(point / 2**0.5))))
            assert abs(float((first < point).float().mean()) - share) < 4 * error


def test_it_scales_what_it_is_added_to_and_works_in_place():
    source = torch.randn(3000)
    expected = 0.9 * source + 0.01 * reference(3000, 5, 11, "normal")
    perturb(source, source, 5, 11, keep=0.9, scale=0.01, noise="normal")
    torch.testing.assert_close(source, expected, atol=1e-6, rtol=1e-6)
    before = source.clone()
    perturb(source, source, 6, 0, keep=1.0, scale=0.0, noise="sign")
    assert torch.equal(source, before)


def test_rows_need_not_lie_side_by_side():
    wide, expected = torch.zeros(50, 300), torch.empty(50, 200)
    perturb(expected, torch.zeros(50, 200), 9, 4, keep=1.0, scale=1.0, noise="normal")
    part = wide[:, :200]
    perturb(part, part, 9, 4, keep=1.0, scale=1.0, noise="normal")
    assert torch.equal(part, expected)
    assert not wide[:, 200:].any()


def test_without_compiled_operations_it_is_the_same_direction():
    compiled = made(1000, 3)
    with native.disabled():
        torch.testing.assert_close(made(1000, 3), compiled, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000, 9000])
def test_a_number_is_the_same_wherever_it_lies(length):
    """Also where the upper half of places changes, which falls into the middle of what is computed at once."""
    start = 2**32 - 500
    whole, one_by_one = torch.zeros(length), torch.zeros(length)
    perturb(whole, whole, 3, start, keep=1.0, scale=1.0, noise="normal")
    for begin in range(0, length, 37):
        part = one_by_one[begin : begin + 37]
        perturb(part, part, 3, start + begin, keep=1.0, scale=1.0, noise="normal")
    assert torch.equal(whole, one_by_one)
    torch.testing.assert_close(whole, reference(length, 3, start, "normal"), atol=2e-6, rtol=2e-6)
