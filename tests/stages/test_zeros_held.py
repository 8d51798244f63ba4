"""What pruning set to zero stays zero while the rest learns, whatever the optimizer."""

import pytest
import torch
from torch import nn

from tunesmith.methods.optimizers import Optimizer
from tunesmith.stages.prune import hold_at_zero


@pytest.mark.parametrize("kind", ["adamw", "mezo", "muon", "lion"])
def test_zeros_are_held_bit_for_bit_and_their_gradients_count_for_nothing(kind):
    torch.manual_seed(0)
    layer, free = nn.Linear(6, 4), nn.Linear(6, 4)
    zero = torch.rand(4, 6) < 0.5
    layer.weight.data.masked_fill_(zero, 0.0)
    free.load_state_dict(layer.state_dict())
    parameters = dict(layer.named_parameters())
    optimizer = Optimizer.member(kind)(learning_rate=0.1, weight_decay=0.1).build(parameters)
    hold_at_zero(parameters, {"weight": zero}, optimizer)
    given = torch.randn(5, 6)

    def closure():
        optimizer.zero_grad()
        loss = layer(given).square().sum()
        if torch.is_grad_enabled():
            loss.backward()
            free.zero_grad()
            free(given).square().sum().backward()
        return loss

    optimizer.step(closure)
    if kind != "mezo":
        assert torch.equal(layer.weight.grad, free.weight.grad.masked_fill(zero, 0.0))
    for _ in range(3):
        optimizer.step(closure)
    assert (layer.weight.detach().view(torch.int32)[zero] == 0).all()  # not even minus zero
    assert (layer.weight[~zero] != free.weight[~zero]).all()
