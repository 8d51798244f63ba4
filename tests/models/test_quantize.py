"""A base in few bits: the fused form computes what its layers stand for, whatever else is done with the model."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.kernels import native
from tunesmith.kernels.int8_linear import Int8Linear
from tunesmith.kernels.nf4_linear import NF4Linear
from tunesmith.kernels.quantised_linear import QuantisedLinear
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.decoding import Feed, FusedDecoding
from tunesmith.models.forward import generic_logps, token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import load, parameters
from tunesmith.models.quantize import KINDS, quantise, round_to

VOCABULARY = 97
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")


each = pytest.mark.parametrize("precision", ["int8", "nf4"])


@pytest.fixture
def quantised(build):
    """A random model with its base in few bits and corrections that correct something."""

    def make(kind="llama", precision="int8", **fields):
        loaded = build(kind, spread=0.15, vocab_size=VOCABULARY, **{**WIDTHS, **fields})
        quantise(loaded.model, precision, torch.float32)
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


@each
def test_layers_computed_again_give_the_same_bits(precision, quantised, random_rows):
    loaded, batch = quantised(precision=precision, num_hidden_layers=3), Batch.of(random_rows(4, answers=2))
    found = []
    for loaded.checkpointing in (False, True):
        loaded.model.zero_grad()
        logps = token_logps(loaded, batch)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        weights = loaded.model.named_parameters()
        found.append([logps.detach(), *(one.grad.clone() for _, one in weights if one.grad is not None)])
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
    assert len(found[0]) > 3


@each
def test_with_its_corrections_off_it_answers_as_the_base(precision, quantised, random_rows):
    loaded, batch = quantised(precision=precision), Batch.of(random_rows(3))
    with torch.no_grad():
        learnt = token_logps(loaded, batch)
        with LoRA(rank=3, alpha=6.0).disabled(loaded):
            fast, slow = token_logps(loaded, batch), generic_logps(loaded, batch)
        again = token_logps(loaded, batch)
    assert torch.equal(again, learnt)
    error = lambda found: float((found - slow).square().mean().sqrt())  # noqa: E731
    assert error(fast) < 0.1 * min(float(slow.std()), error(learnt))


def test_four_bits_are_kept_once_and_their_plain_numbers_not_at_all(quantised):
    loaded = quantised(precision="nf4", hidden_size=256, intermediate_size=512, num_attention_heads=16)
    decoder = loaded.decoder()
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, NF4Linear)]
    assert len(layers) == 14
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    size = sum(tensor.nbytes for layer in layers for tensor in (layer.weight, *layer.buffers()))
    assert size == pytest.approx(0.516 * numbers, rel=1e-3)
    corrections = sum(layer.in_features + layer.out_features for layer in layers) * 4 * 4  # rank 3, made even
    assert sum(tensor.nbytes for tensor in decoder.held()) < 1.4 * corrections


def test_four_bits_are_views_of_what_answers_are_decoded_from(quantised):
    loaded = quantised(precision="nf4")
    blocks = loaded.decoder().blocks
    for layer, block in zip(loaded.model.model.layers, blocks, strict=True):
        stack = block.gate_up.base.codes_N
        for name in ("gate_proj", "up_proj"):
            base = getattr(layer.mlp, name).base
            assert base.weight.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()


@each
@pytest.mark.parametrize(("adapter", "widths"), [(DoRA(rank=3), {}), (LoRA(rank=3), {"intermediate_size": 80})])
def test_what_is_not_read_as_it_is_is_made_plain(precision, adapter, widths, build):
    """Factors of outputs, and in four bits rows that end within a block."""
    loaded = build("llama", spread=0.15, vocab_size=VOCABULARY, **{**WIDTHS, **widths})
    quantise(loaded.model, precision, torch.float32)
    adapter.attach(loaded, 0)
    prompts, sampling = [[5, 6, 7], [8, 9]], Sampling(max_tokens=6)
    fast = [one.tokens for one in generate(loaded, prompts, sampling)]
    with native.disabled():
        loaded.fuse = False
        assert [one.tokens for one in generate(loaded, prompts, sampling)] == fast


def test_it_takes_a_quarter_of_float32_and_no_weight_is_kept_twice(quantised):
    loaded = quantised()
    decoder = loaded.decoder()
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, Int8Linear)]
    joint = {tensor.untyped_storage().data_ptr() for tensor in decoder.held()}
    assert len(layers) == 14
    assert all(layer.weight.untyped_storage().data_ptr() in joint for layer in layers)
    held = sum(tensor.nbytes for tensor in decoder.held() if tensor.dtype == torch.int8)
    assert held == sum(layer.in_features * layer.out_features for layer in layers)


@each
def test_the_rounded_model_has_the_weights_that_the_bits_stand_for(precision, build):
    plain = build("llama", vocab_size=VOCABULARY, **WIDTHS)
    quantised = copy.deepcopy(plain)
    quantise(quantised.model, precision, torch.float32)
    round_to(plain.model, precision)
    assert parameters(quantised.model) == parameters(plain.model)
    for name, layer in quantised.model.named_modules():
        if isinstance(layer, QuantisedLinear):
            weight = plain.model.get_submodule(name).weight
            torch.testing.assert_close(weight, layer.held.dequantised(torch.float32))


@each
def test_answers_of_a_model_under_training_are_those_of_its_plain_form(precision, quantised):
    loaded = quantised(precision=precision)
    prompts, sampling = [[5, 6, 7], [8, 9]], Sampling(max_tokens=6)
    with native.disabled():
        loaded.fuse = False
        slow = [one.tokens for one in generate(loaded, prompts, sampling)]
    loaded.fuse = True
    assert [one.tokens for one in generate(loaded, prompts, sampling)] == slow


@each
@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma3_text"])
def test_a_compiled_step_multiplies_as_training_does(precision, kind, quantised):
    """Codes of activations that lie between two may go either way, so int8 is not the same to the last bit."""
    loaded, tokens = quantised(kind, precision), [5, 6, 7, 60, 61, 9]
    learn = np.array([False] * len(tokens) + [True])
    rows = [Row("row", (Sequence(np.array([*tokens, each], np.int32), learn),)) for each in range(VOCABULARY)]
    with torch.no_grad():
        expected = token_logps(loaded, Batch.of(rows))
        found = FusedDecoding.of(loaded, 1).step([Feed(0, tokens, 0, [0])])[0].log_softmax(-1)
        rounded = generic_logps(loaded, Batch.of(rows))
    apart = float((found - expected).square().mean().sqrt())
    assert apart < 1e-4 if precision == "nf4" else apart < 0.3 * float((rounded - expected).square().mean().sqrt())


@each
def test_merging_gives_the_weights_plus_the_corrections(precision, quantised, random_rows):
    loaded, batch = quantised(precision=precision), Batch.of(random_rows(3))
    expected = generic_logps(loaded, batch)
    LoRA(rank=3, alpha=6.0).merge(loaded)
    torch.testing.assert_close(generic_logps(loaded, batch), expected, atol=1e-3, rtol=1e-4)


@each
def test_a_folder_is_loaded_into_few_bits(precision, tiny_folder):
    loaded = load(str(tiny_folder), precision)
    kinds = {type(layer) for layer in loaded.model.model.layers.modules() if isinstance(layer, torch.nn.Linear)}
    assert kinds == {KINDS[precision]}
    assert loaded.model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert loaded.precision == precision
