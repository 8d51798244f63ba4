"""A base in int8: the fused form computes what its layers stand for, whatever else is done with the model."""

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tunesmith.data.batch import Batch
from tunesmith.kernels import native
from tunesmith.kernels.int8_linear import Int8Linear
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.forward import generic_logps, token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import load, parameters
from tunesmith.models.quantize import quantise, round_to

VOCABULARY = 97
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")


@pytest.fixture
def quantised(build):
    """A random model with its base in int8 and corrections that correct something."""

    def make(kind="llama", **fields):
        loaded = build(kind, spread=0.15, vocab_size=VOCABULARY, **{**WIDTHS, **fields})
        quantise(loaded.model, "int8", torch.float32)
        LoRA(rank=3, alpha=6.0).attach(loaded, 0)
        with torch.no_grad():
            for name, weight in loaded.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.1)
        return loaded

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "gemma3_text"])
def test_values_and_gradients_are_nearly_those_of_plain_numbers(kind, quantised, random_rows):
    loaded, batch = quantised(kind), Batch.of(random_rows(3, answers=2) + random_rows(2, seed=5))
    found = []
    for function in (token_logps, generic_logps):
        loaded.model.zero_grad()
        logps = function(loaded, batch)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        weights = loaded.model.named_parameters()
        found.append((logps.detach(), {name: one.grad.flatten() for name, one in weights if one.grad is not None}))
    (fast, fast_gradient), (slow, slow_gradient) = found
    assert fast_gradient.keys() == slow_gradient.keys()
    assert float((fast - slow).square().mean().sqrt()) < 0.1 * float(slow.std())
    every = [torch.cat([one[name] for name in fast_gradient]) for one in (fast_gradient, slow_gradient)]
    assert cosine_similarity(*every, 0) > 0.99


def test_layers_computed_again_give_the_same_bits(quantised, random_rows):
    loaded, batch = quantised(num_hidden_layers=3), Batch.of(random_rows(4, answers=2))
    found = []
    for loaded.checkpointing in (False, True):
        loaded.model.zero_grad()
        logps = token_logps(loaded, batch)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        weights = loaded.model.named_parameters()
        found.append([logps.detach(), *(one.grad.clone() for _, one in weights if one.grad is not None)])
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
    assert len(found[0]) > 3


def test_with_its_corrections_off_it_answers_as_the_base(quantised, random_rows):
    loaded, batch = quantised(), Batch.of(random_rows(3))
    with torch.no_grad():
        learnt = token_logps(loaded, batch)
        with LoRA(rank=3, alpha=6.0).disabled(loaded):
            fast, slow = token_logps(loaded, batch), generic_logps(loaded, batch)
        again = token_logps(loaded, batch)
    assert torch.equal(again, learnt)
    error = lambda found: float((found - slow).square().mean().sqrt())  # noqa: E731
    assert error(fast) < 0.1 * min(float(slow.std()), error(learnt))


def test_it_takes_a_quarter_of_float32_and_no_weight_is_kept_twice(quantised):
    loaded = quantised()
    decoder = loaded.decoder()
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, Int8Linear)]
    joint = {tensor.untyped_storage().data_ptr() for tensor in decoder.held()}
    assert len(layers) == 14
    assert all(layer.weight.untyped_storage().data_ptr() in joint for layer in layers)
    held = sum(tensor.nbytes for tensor in decoder.held() if tensor.dtype == torch.int8)
    assert held == sum(layer.in_features * layer.out_features for layer in layers)


def test_the_rounded_model_has_the_weights_that_int8_stands_for(build):
    plain = build("llama", vocab_size=VOCABULARY, **WIDTHS)
    quantised = copy.deepcopy(plain)
    quantise(quantised.model, "int8", torch.float32)
    round_to(plain.model, "int8")
    assert parameters(quantised.model) == parameters(plain.model)
    for name, layer in quantised.model.named_modules():
        if isinstance(layer, Int8Linear):
            weight = plain.model.get_submodule(name).weight
            torch.testing.assert_close(weight, layer.held.dequantised(torch.float32))


def test_answers_of_a_model_under_training_are_those_of_its_plain_form(quantised):
    loaded = quantised()
    prompts, sampling = [[5, 6, 7], [8, 9]], Sampling(max_tokens=6)
    with native.disabled():
        loaded.fuse = False
        slow = [one.tokens for one in generate(loaded, prompts, sampling)]
    loaded.fuse = True
    assert [one.tokens for one in generate(loaded, prompts, sampling)] == slow


def test_merging_gives_the_weights_plus_the_corrections(quantised, random_rows):
    loaded, batch = quantised(), Batch.of(random_rows(3))
    expected = generic_logps(loaded, batch)
    LoRA(rank=3, alpha=6.0).merge(loaded)
    torch.testing.assert_close(generic_logps(loaded, batch), expected, atol=1e-3, rtol=1e-4)


def test_a_folder_is_loaded_into_int8(tiny_folder):
    loaded = load(str(tiny_folder), "int8")
    kinds = {type(layer) for layer in loaded.model.model.layers.modules() if isinstance(layer, torch.nn.Linear)}
    assert kinds == {Int8Linear}
    assert loaded.model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert loaded.precision == "int8"
