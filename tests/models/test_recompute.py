"""Activation checkpointing: the same bits from less memory, by the fused operations and by transformers' layers."""

import gc

import pytest
import torch
from architectures import ARCHITECTURES

from tunesmith.data.batch import Batch
from tunesmith.kernels import arena
from tunesmith.kernels.arena import Arena
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.forward import generic_logps, padded_logps, token_logps

VOCABULARY = 97
PATHS = {"fused": token_logps, "generic": generic_logps, "padded": padded_logps}
LORA = LoRA(rank=3, alpha=6.0)
CASES = [
    *((kind, LORA, path) for kind in ARCHITECTURES for path in ("fused", "generic")),
    ("llama", LORA, "padded"),
    *((kind, Full(), "fused") for kind in ("llama", "gemma3_text")),
]


def results(loaded, path, batch, checkpointing):
    """Log-probabilities and gradients, with the same random draws."""
    loaded.checkpointing = checkpointing
    loaded.model.zero_grad()
    torch.manual_seed(3)
    logps = PATHS[path](loaded, batch)
    torch.rand(5)  # what is drawn between forward and backward must not matter
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "adapter", "path"), CASES, ids=lambda one: getattr(one, "kind", one))
def test_recomputed_layers_give_the_same_bits(kind, adapter, path, build, random_rows):
    fields = {"kind": kind, "spread": 0.3, "vocab_size": VOCABULARY, "num_hidden_layers": 3, **ARCHITECTURES[kind]}
    loaded = build(**fields)
    if path == "padded":  # as a model whose attention takes no forest is
        loaded.forest = False
        loaded.model.set_attn_implementation("eager")
    adapter.attach(loaded, 0)
    loaded.model.train()
    batch = Batch.of(random_rows(3, answers=2) + random_rows(2, seed=5))
    (plain, expected), (again, found) = (results(loaded, path, batch, on) for on in (False, True))
    assert torch.equal(plain, again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_dropout_draws_the_same_numbers_again(build, random_rows):
    loaded = build("llama", spread=0.3, vocab_size=VOCABULARY)
    LoRA(rank=3, dropout=0.5).attach(loaded, 0)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    loaded.model.train()
    batch = Batch.of(random_rows(4))
    (plain, expected), (again, found) = (results(loaded, "fused", batch, on) for on in (False, True))
    assert torch.equal(plain, again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    torch.manual_seed(4)
    assert not torch.equal(plain, token_logps(loaded, batch))  # it does drop


@pytest.mark.parametrize("path", ["fused", "generic", "padded"])
def test_layers_are_recomputed_where_nothing_is_dropped_too(build, random_rows, path):
    """As where answers were sampled: the model is in evaluation mode, and what its layers hold stays so."""
    loaded = build("llama", spread=0.3, vocab_size=VOCABULARY)
    if path == "padded":
        loaded.forest = False
        loaded.model.set_attn_implementation("eager")
    LoRA(rank=3, dropout=0.5).attach(loaded, 0)
    loaded.model.eval()
    batch, kept = Batch.of(random_rows(4)), []
    layer = loaded.model.model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: kept.append(layer.mlp.up_proj.training))
    found = []
    for on in (False, True):
        found.append(results(loaded, path, batch, on))
        assert kept == [False] * (0 if path == "fused" else 1 + on)  # fused operations call no modules
        kept.clear()
    (plain, expected), (again, gradients) = found
    assert torch.equal(plain, again)
    assert all(torch.equal(expected[name], gradients[name]) for name in expected)
    with torch.no_grad():
        PATHS[path](loaded, batch)
    assert not any(module.training for module in loaded.model.modules())


def test_a_backward_after_others_used_the_model_is_that_of_its_own_forward(build, random_rows):
    loaded = build("llama", spread=0.3, vocab_size=VOCABULARY)
    adapter = LoRA(rank=3)
    adapter.attach(loaded, 0)
    loaded.model.train()
    batch, other = Batch.of(random_rows(4)), Batch.of(random_rows(2, seed=9))
    _, expected = results(loaded, "fused", batch, False)
    loaded.model.zero_grad()
    loaded.checkpointing = True
    total = (token_logps(loaded, batch) * torch.linspace(-1, 1, int(batch.target_M.numel()))).sum()
    with adapter.disabled(loaded), torch.no_grad():
        token_logps(loaded, other)
    token_logps(loaded, other).sum()
    total.backward()
    assert all(torch.equal(expected[name], p.grad) for name, p in loaded.model.named_parameters() if name in expected)


def test_all_layers_share_the_room_of_one(build, random_rows, monkeypatch):
    """What the arena holds grows by a layer's inputs, not by what the layer computes."""
    used = {}
    for depth in (4, 12):
        loaded = build("llama", vocab_size=VOCABULARY, num_hidden_layers=depth)
        LoRA(rank=2).attach(loaded, 0)
        loaded.model.train()
        batch = Batch.of(random_rows(4))
        for on in (False, True):
            mine = Arena(1 << 24)
            monkeypatch.setattr(arena, "the_arena", lambda mine=mine: mine)
            results(loaded, "fused", batch, on)
            gc.collect()
            assert not mine.busy
            used[depth, on] = len(bytes(mine.map).rstrip(b"\0"))
    nodes, width = len(batch.forest.tokens_N), loaded.model.config.hidden_size
    inputs = 8 * (2 * 4 * nodes * width + 2 * arena.ALIGNED)  # float32 residual and update of eight more layers
    assert used[12, True] - used[4, True] <= inputs
    assert used[12, False] - used[4, False] > 4 * inputs / 2
