"""AdamW in eight bits: near AdamW's course in a quarter of its memory, and the same bits after a restart or from a file."""

import pytest
import torch
from torch import nn

from tunesmith.kernels.mapped import every
from tunesmith.methods.optimizers import kept
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.methods.optimizers.adamw8bit import AdamW8bit
from tunesmith.training import checkpoint

STEPS = 50


class Problem:
    """A small network, and what it is to compute."""

    def __init__(self, spec):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 8))
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = spec.build(self.parameters)
        self.inputs = torch.randn(256, 64)
        self.targets = torch.sin(self.inputs @ torch.randn(64, 8) / 4)

    def go(self, first, last):
        losses = []
        for step in range(first, last):
            rows = torch.randperm(256, generator=torch.Generator().manual_seed(step))[:64]

            def closure(rows=rows):
                self.optimizer.zero_grad()
                loss = (self.model(self.inputs[rows]) - self.targets[rows]).square().mean()
                loss.backward()
                return loss.detach()

            losses.append(float(self.optimizer.step(closure)))
        return losses

    @property
    def flat(self):
        return torch.cat([one.detach().flatten() for one in self.parameters.values()])


def spec(member=AdamW8bit, **fields):
    return member(learning_rate=3e-3, weight_decay=0.01, **fields)


def test_it_goes_nearly_where_adamw_goes():
    start, plain, eight = Problem(spec()).flat, Problem(spec(AdamW)), Problem(spec())
    expected, found = plain.go(0, STEPS), eight.go(0, STEPS)
    assert expected[-1] < 0.6 * expected[0]
    assert found == pytest.approx(expected, rel=0.05)
    assert float((eight.flat - plain.flat).norm()) < 0.1 * float((plain.flat - start).norm())
    assert not torch.equal(eight.flat, plain.flat)


def test_it_takes_little_more_than_a_quarter():
    shapes = {"embedding": (1000, 64), "matrix": (512, 512), "norm": (512,)}
    weights = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    found, plain = AdamW8bit().state_bytes(weights), AdamW().state_bytes(weights)
    assert plain == 8 * sum(one.numel() for one in weights.values())
    assert found < 0.27 * plain
    state = AdamW8bit().build(weights).state_dict()["state"].values()
    assert sum(one.nbytes for each in state for name, one in each.items() if name != "step") == found


@pytest.mark.parametrize("piece", [1 << 20, 256 * 5])
@pytest.mark.parametrize("files", [(False, False), (True, True), (True, False), (False, True)], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, files, piece):
    whole = Problem(spec())
    expected = whole.go(0, 12)
    monkeypatch.setattr(kept, "PIECE", piece)
    first, second = (Problem(spec(offload=offload)) for offload in files)
    losses = first.go(0, 6)
    checkpoint.save(tmp_path, 6, first.parameters, first.optimizer, {})
    del first
    second.go(0, 2)  # whatever it held before
    checkpoint.restore(checkpoint.load_newest(tmp_path, pytest.fail), second.parameters, second.optimizer)
    assert losses + second.go(6, 12) == expected
    assert torch.equal(second.flat, whole.flat)
    codes = [each["exp_avg_sq"] for each in second.optimizer.state.values() if each["exp_avg_sq"].dtype == torch.uint8]
    assert sorted(one.numel() for one in codes) == [64 * 96, 96 * 96]
    for file in every:
        file.give_back()
    assert second.go(12, 14) == whole.go(12, 14)


def test_a_weight_without_gradient_after_small_ones_makes_no_leap():
    """Rows of an embedding: a square too small for its block must not become zero while the mean is not."""
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = AdamW8bit(learning_rate=1e-3).build({"embedding": weight})
    slopes = torch.logspace(-5, 0, 4096)
    for gradient in (slopes, torch.zeros(4096), torch.zeros(4096)):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
        assert float((weight.detach() - before).abs().max()) < 1.1e-3
