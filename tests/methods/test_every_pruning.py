"""What every way of pruning keeps, found by its family: a new member needs no new test."""

import pytest
import torch

from tunesmith.base.proof import Proof
from tunesmith.data.batch import Batch
from tunesmith.methods.pruning import Pruning
from tunesmith.models import attention
from tunesmith.models.forward import token_logps


@torch.no_grad()
def logps(loaded, rows):
    """What the model says of rows."""
    return token_logps(loaded, Batch.of(rows))


@pytest.mark.parametrize("member", Pruning.members(), ids=lambda member: member.__name__)
def test_what_is_pruned_is_gone_and_the_model_that_is_left_says_what_the_silenced_one_said(member, build, random_rows):
    loaded, method, rows = (
        build("llama", seed=3, spread=0.3, vocab_size=97, num_hidden_layers=3, intermediate_size=64),
        member(),
        random_rows(4),
    )
    before, count = logps(loaded, rows), sum(weight.numel() for weight in loaded.model.parameters())
    method.check(loaded.model.config)
    kept = method.silence(loaded, rows)
    silenced = logps(loaded, rows)
    assert (silenced - before).abs().max() > 1e-4
    loaded.model, claimed = method.shrunk(loaded.model, kept), Proof()
    loaded.release()
    attention.adopt(loaded.model)
    torch.testing.assert_close(logps(loaded, rows), silenced, atol=1e-5, rtol=1e-5)
    assert (sum(weight.numel() for weight in loaded.model.parameters()) < count) == member.smaller == bool(kept)
    assert bool(method.zeros(loaded.model)) != member.smaller
    method.prove(claimed, loaded.model)
    assert claimed.claims
    assert all(claim["holds"] for claim in claimed.claims)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():  # a weight that came back is no sparse model
            weight.add_(0.01 if "_proj" in name else 0.0)
    if not member.smaller:
        again = Proof()
        method.prove(again, loaded.model)
        assert not all(claim["holds"] for claim in again.claims)
