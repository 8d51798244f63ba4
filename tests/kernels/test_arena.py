"""The arena hands out what one pass keeps, and never what an earlier pass still needs."""

import gc

import pytest
import torch

from tunesmith.data.batch import Batch
from tunesmith.kernels import arena, native
from tunesmith.kernels.arena import Arena, kept, kept_together
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.forward import token_logps


@pytest.fixture
def small(monkeypatch):
    mine = Arena(1 << 16)
    monkeypatch.setattr(arena, "the_arena", lambda: mine)
    return mine


def test_tensors_of_a_pass_do_not_overlap(small):
    like = torch.zeros(1)
    with kept_together():
        made = [kept(like, 3, width) for width in (1, 7, 33)] + [kept(like, 5, 5, torch.bfloat16)]
    for number, tensor in enumerate(made):
        tensor.fill_(number)
    assert [int(tensor.float().mean()) for tensor in made] == [0, 1, 2, 3]
    assert small.busy
    del made, tensor
    gc.collect()
    assert not small.busy


def test_while_a_pass_lives_the_next_one_gets_memory_of_its_own(small):
    with kept_together():
        first = kept(torch.zeros(1), 4, 4).fill_(1)
    with kept_together():
        second = kept(torch.zeros(1), 4, 4).fill_(2)
    assert first.mean() == 1
    del first
    with kept_together():
        third = kept(torch.zeros(1), 4, 4).fill_(3)
    assert (float(second.mean()), float(third.mean())) == (2, 3)


def test_what_does_not_fit_is_ordinary_memory(small):
    with kept_together():
        made = [kept(torch.zeros(1), 64, 64) for _ in range(8)]
    for number, tensor in enumerate(made):
        tensor.fill_(number)
    assert [int(tensor.mean()) for tensor in made] == list(range(8))


def test_outside_a_pass_and_without_gradients_nothing_is_taken(small):
    kept(torch.zeros(1), 2, 2)
    with torch.no_grad(), kept_together():
        held = kept(torch.zeros(1), 2, 2)
    assert not small.busy
    assert held.shape == (2, 2)


@pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")
def test_two_passes_before_one_backward_have_the_gradients_of_each(build, random_rows):
    loaded = build("llama", spread=0.3, vocab_size=97)
    LoRA(rank=2).attach(loaded, 0)
    batches = [Batch.of(random_rows(2)), Batch.of(random_rows(3, seed=4))]
    parameters = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    apart = [torch.autograd.grad(token_logps(loaded, batch).sum(), parameters) for batch in batches]
    first, second = (token_logps(loaded, batch).sum() for batch in batches)
    together = torch.autograd.grad(first + second, parameters)
    for one, (left, right) in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(one, left + right, atol=1e-5, rtol=1e-4)
