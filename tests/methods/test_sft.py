"""What supervised tuning can be given beside its rows, each against its formula over padded rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.methods.objectives.sft import SFT
from tunesmith.models.forward import generic_logps, noisy_embeddings, padded_inputs, padded_logps

VOCABULARY = 97


@pytest.fixture(params=["llama", "gemma2"])
def model(request, build):
    fields = {"sliding_window": 6, "query_pre_attn_scalar": 8} if request.param == "gemma2" else {}
    return lambda: build(request.param, seed=3, vocab_size=VOCABULARY, **fields)


@pytest.fixture
def weighted(random_rows):
    return [replace(row, columns={"weight": 0.5 + number}) for number, row in enumerate(random_rows(5))]


def logits(loaded, row):
    sequence = row.sequences[0]
    with torch.enable_grad():
        found = loaded.model(input_ids=torch.tensor(sequence.tokens)[None].long(), use_cache=False).logits[0]
    learnt = torch.tensor(sequence.learn).nonzero()[:, 0]
    return found[learnt - 1], torch.tensor(sequence.tokens).long()[learnt]


@pytest.mark.parametrize(
    "fields", [{"label_smoothing": 0.1}, {"focus": 2.0}, {}], ids=["smoothing", "focal", "weights"]
)
def test_loss_and_gradient_are_those_of_the_formula(model, weighted, fields):
    objective, found = SFT(**fields), []
    loaded = model()
    loss = objective(loaded, Batch.of(weighted)).total
    loss.backward()
    found = {name: weight.grad for name, weight in loaded.model.named_parameters()}
    twin, expected = model(), torch.zeros(())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin.model.config, "_attn_implementation", "eager")
        for row in weighted:
            logits_MV, target_M = logits(twin, row)
            if "focus" in fields:
                p_M = logits_MV.softmax(-1).gather(1, target_M[:, None])[:, 0]
                each = -((1 - p_M) ** 2) * p_M.log()
            else:
                each = torch.nn.functional.cross_entropy(
                    logits_MV, target_M, reduction="none", label_smoothing=fields.get("label_smoothing", 0.0)
                )
            expected = expected + row.columns["weight"] * each.sum()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, weight in twin.model.named_parameters():
        assert (weight.grad - found[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_smoothing_is_the_same_on_every_way(model, random_rows):
    loaded, batch = model(), Batch.of(random_rows(4))
    expected = padded_logps(loaded, batch, 0.2)
    torch.testing.assert_close(generic_logps(loaded, batch, 0.2), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(-SFT(label_smoothing=0.2)(loaded, batch).total, expected.sum(), atol=1e-4, rtol=1e-5)


def test_noise_is_uniform_small_and_only_there_in_training(model, random_rows):
    loaded, batch, seen = model(), Batch.of(random_rows(4)), []
    embeddings = loaded.model.get_input_embeddings()
    objective = SFT(noise=5.0)
    quiet = SFT()(loaded, batch).total
    assert torch.equal(objective(loaded, batch).total, quiet)
    loaded.model.train()
    handle = embeddings.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    torch.manual_seed(0)
    noisy = objective(loaded, batch).total
    assert not torch.equal(noisy, quiet)
    assert len(seen) == 1
    handle.remove()
    assert torch.equal(SFT()(loaded, batch).total, quiet)


def apart(loaded, batch):
    """Noise on the embeddings of each row, [T, D]."""
    embeddings = loaded.model.get_input_embeddings().train()
    nodes = [batch.forest.nodes(number) for number in range(len(batch.row_S))]
    ids = batch.forest.tokens_N[None] if loaded.forest else padded_inputs(loaded, batch)["input_ids"]
    with torch.no_grad(), noisy_embeddings(loaded, batch, 5.0):
        found = embeddings(ids)
    found = found - embeddings(ids).detach()
    return [found[0, one] if loaded.forest else found[number, : len(one)] for number, one in enumerate(nodes)]


@pytest.mark.parametrize("forest", [True, False], ids=["forest", "padded"])
def test_noise_is_as_small_as_its_row_is_long_whatever_passes_with_it(model, random_rows, forest):
    loaded, rows = model(), random_rows(4)
    long = rows[-1].sequences[0]
    rows[-1] = Row("long", (Sequence(np.tile(long.tokens, 20), np.tile(long.learn, 20)),))
    loaded.forest = forest
    for passed in (rows, rows[:1], rows[-1:]):
        for row, noise in zip(passed, apart(loaded, Batch.of(passed, share=False)), strict=True):
            bound = 5.0 / (len(row) * 16) ** 0.5
            assert 0.9 * bound <= float(noise.abs().max()) <= 1.001 * bound
            assert abs(float(noise.mean())) < 0.2 * bound


def test_noise_on_what_rows_share_is_that_of_the_longest(model, random_rows):
    rows = random_rows(3)
    found, bound = apart(model(), Batch.of(rows)), 5.0 / (max(map(len, rows)) * 16) ** 0.5
    assert torch.equal(found[0][:9], found[1][:9])
    assert 0.9 * bound <= float(found[0][:9].abs().max()) <= 1.001 * bound
