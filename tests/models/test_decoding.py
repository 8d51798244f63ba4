"""The compiled step against the step through transformers' own layers, token by token, for every architecture that has a fused form."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES

from tunesmith.data.batch import grow
from tunesmith.kernels import native
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.decoding import FusedDecoding, GenericDecoding
from tunesmith.models.generate import Sampling, generate

ADAPTERS = {"none": None, "lora": LoRA(rank=3), "full": Full()}
STEPS = 6

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")


def prompts():
    """Shared beginnings of odd and even length, one that begins another, a repetition, one longer than a tile of keys."""
    draw = np.random.default_rng(0)
    start, other, long = (draw.integers(0, 90, size) for size in (13, 5, 150))
    return [np.concatenate([start, other]), start, start, np.concatenate([start[:4], other]), long, np.array([7])]


def steps(loaded, kind):
    """Log-probabilities after the prompts and after each of some given tokens; on the way sequences end."""
    forest = grow(prompts())
    nodes = [forest.nodes(number) for number in range(len(forest.segments))]
    draw, found = np.random.default_rng(1), []
    with torch.no_grad():
        logits, decoding = kind.prefill(loaded, forest, nodes, STEPS)
        found.append(logits)
        for number in range(STEPS):
            if number == 3:
                decoding.keep(torch.tensor([0, 2, 4]))
                logits = logits[[0, 2, 4]]
            logits = decoding.step(draw.integers(0, 90, len(logits)).tolist())
            found.append(logits)
    return [one.log_softmax(-1) for one in found]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_compiled_step_is_the_models_own(kind, adapter, build):
    loaded = build(**{"kind": kind, "spread": 0.3, "vocab_size": 97, **ARCHITECTURES[kind]})
    if ADAPTERS[adapter] is not None:
        ADAPTERS[adapter].attach(loaded, 0)
        with torch.no_grad():
            for name, weight in loaded.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.1)
    loaded.model.eval()
    assert loaded.decoder() is not None
    for number, (fast, slow) in enumerate(
        zip(steps(loaded, FusedDecoding), steps(loaded, GenericDecoding), strict=True)
    ):
        torch.testing.assert_close(
            fast, slow, atol=2e-5 * max(1, float(slow.abs().max())), rtol=0, msg=f"step {number}"
        )


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_in_bf16_a_compiled_step_is_as_near_to_fp32_as_the_models_own(kind, build):
    exact = build(kind, spread=0.1, vocab_size=97, **ARCHITECTURES[kind])
    half = build(kind, spread=0.1, vocab_size=97, dtype=torch.bfloat16, **ARCHITECTURES[kind])
    truth, fast, slow = steps(exact, GenericDecoding), steps(half, FusedDecoding), steps(half, GenericDecoding)
    error = lambda found: sum(float((a - b).square().mean()) for a, b in zip(found, truth, strict=True))  # noqa: E731
    assert error(fast) <= 1.2 * error(slow)


@pytest.mark.parametrize(
    "fields",
    [{"intermediate_size": 37}, {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_sizes_are_not_multiplied_in_pairs(fields, dtype, build):
    loaded = build("llama", spread=0.3, dtype=dtype, **fields)
    LoRA(rank=3).attach(loaded, 0)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    prompts = [[1, 40, 41, 42], [60]]
    found = generate(loaded, prompts, Sampling(max_tokens=8))
    assert loaded.decoder() is not None
    assert not loaded.decoder().paired
    loaded.fuse = False
    expected = generate(loaded, prompts, Sampling(max_tokens=8))
    if dtype == torch.float32:
        assert [one.tokens for one in found] == [one.tokens for one in expected]


def test_a_step_refuses_what_would_not_fit(build):
    loaded = build("llama", vocab_size=97)
    forest = grow([np.arange(4), np.arange(3, 9)])
    nodes = [forest.nodes(number) for number in range(2)]
    _, decoding = FusedDecoding.prefill(loaded, forest, nodes, 2)
    with pytest.raises(ValueError, match="1 tokens for 2 sequences"):
        decoding.step([5])
    decoding.step([5, 6])
    decoding.step([5, 6])
    with pytest.raises(ValueError, match="room for 2 new ones"):
        decoding.step([5, 6])
