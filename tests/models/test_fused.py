"""The fast path against the generic one: values and gradients, architecture by architecture, for every kind of weight that learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES

from tunesmith.data.batch import Batch
from tunesmith.data.example import Sequence
from tunesmith.kernels import head, native
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models import fused
from tunesmith.models.forward import generic_logps, padded_logps, token_logps

VOCABULARY = 97
ADAPTERS = {
    "lora": LoRA(rank=3, alpha=6.0),
    "some": LoRA(rank=2, targets=("q_proj", "down_proj")),
    "dora": DoRA(rank=3, alpha=6.0),
    "some-dora": DoRA(rank=2, targets=("k_proj", "down_proj")),
    "full": Full(),
}


def gradients(loaded, logps):
    loaded.model.zero_grad()
    weights = torch.linspace(-1, 1, len(logps))  # no objective weighs all tokens alike
    (logps * weights).sum().backward()
    return {name: weight.grad.clone() for name, weight in loaded.model.named_parameters() if weight.grad is not None}


def perturb(loaded):
    """Give zero-initialised corrections something to correct."""
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
            if "magnitude" in name:
                weight.mul_(torch.rand(weight.shape) + 0.5)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "reference"])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_fused_operations_are_the_models_own(kind, adapter, compiled, build, random_rows, monkeypatch):
    if adapter.startswith("some") and kind == "phi3":
        pytest.skip("phi3 has one projection for all of attention")
    loaded = build(**{"kind": kind, "spread": 0.3, "vocab_size": VOCABULARY, **ARCHITECTURES[kind]})
    ADAPTERS[adapter].attach(loaded, 0)
    perturb(loaded)
    batch = Batch.of(random_rows(3, answers=2) + random_rows(2, seed=5))
    expected = generic_logps(loaded, batch)
    expected_gradient = gradients(loaded, expected)
    if not compiled:
        monkeypatch.setattr(native, "run", None)
        for module in ("add_norm", "forest_attention", "gated_linear", "head", "stretch"):
            monkeypatch.setattr(f"tunesmith.kernels.{module}.native.serves", lambda tensor: False)
        decoder = fused.Decoder(loaded.model, torch.float32)
        found = head.token_logps(
            decoder.hidden(batch.forest, batch.source_M), decoder.head, batch.target_M, decoder.softcap
        )
    else:
        assert loaded.decoder() is not None
        found = token_logps(loaded, batch)
    torch.testing.assert_close(found, expected, atol=2e-5 * max(1, float(expected.detach().abs().max())), rtol=0)
    found_gradient = gradients(loaded, found)
    assert found_gradient.keys() == expected_gradient.keys()
    largest = max(float(gradient.norm()) for gradient in expected_gradient.values())
    for name, gradient in expected_gradient.items():
        assert (found_gradient[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6 * largest, name


def alike(row):
    """The row with a second answer that is the first but for its end."""
    first, second = row.sequences
    tokens = np.concatenate([first.tokens[:-2], second.tokens[-2:]])
    return replace(row, sequences=(first, Sequence(tokens, first.learn)))


def test_what_answers_that_begin_alike_share_is_read_once_and_counts_for_both(build, random_rows, monkeypatch):
    loaded = build("llama", spread=0.3, vocab_size=VOCABULARY)
    LoRA(rank=3, alpha=6.0).attach(loaded, 0)
    perturb(loaded)
    batch, asked = Batch.of([alike(row) for row in random_rows(3, answers=2)]), []
    expected = padded_logps(loaded, batch)
    wanted = gradients(loaded, expected)
    counted = lambda hidden, *given: asked.append(len(hidden)) or token_head(hidden, *given)  # noqa: E731
    token_head = head.token_logps
    monkeypatch.setattr(head, "token_logps", counted)
    found = token_logps(loaded, batch)
    pairs = set(zip(batch.source_M.tolist(), batch.target_M.tolist(), strict=True))
    assert asked == [len(pairs)]
    assert len(pairs) < 0.7 * batch.supervised
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, gradient in gradients(loaded, found).items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name
