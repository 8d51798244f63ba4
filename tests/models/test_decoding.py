"""The compiled step against the step through transformers' own layers, token by token, for every architecture that has a fused form."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES

from tunesmith.kernels import native
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.decoding import Feed, FusedDecoding, GenericDecoding
from tunesmith.models.generate import Sampling, generate

ADAPTERS = {"none": None, "lora": LoRA(rank=3), "full": Full()}

pytestmark = pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")


def steps(loaded, kind):
    """Log-probabilities of some steps: a prompt read in pieces of odd and even length beside others that go on, one that branches, one that ends."""
    draw = np.random.default_rng(0)
    tokens = lambda count: draw.integers(0, 90, count).tolist()  # noqa: E731
    decoding = kind.of(loaded, 8)
    table = {"short": [5], "long": [0, 7, 2], "lone": [3], "branch": [6]}
    length = dict.fromkeys(table, 0)
    found = []
    with torch.no_grad():
        for plan in (
            {"short": 13, "long": 69, "lone": 1},
            {"short": 1, "long": 6},
            {"long": 76, "lone": 1, "short": 1},
            {"branch": 1, "short": 1, "long": 1},
            {"short": 1, "branch": 4},
            {"long": 1, "branch": 1, "short": 1},
            {"branch": 1},
        ):
            if "branch" in plan and not length["branch"]:
                decoding.copy(5, 6)
                length["branch"] = length["short"]
            feeds = []
            for number, (name, count) in enumerate(plan.items()):
                pages = table[name][: -(-(length[name] + count) // 64)]
                feeds.append(Feed(number, tokens(count), length[name], pages, wanted=count != 69))
                length[name] += count
            found.append(decoding.step(feeds))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_row_has_the_same_bits_whatever_is_beside_it(kind, dtype, build):
    """A prompt whole, in pieces, and beside others, in pages that others have written to before."""
    loaded = build(kind, spread=0.1, vocab_size=97, dtype=dtype, **ARCHITECTURES[kind])
    draw = np.random.default_rng(0)
    prompt, other = (draw.integers(0, 90, 151).tolist() for _ in range(2))
    with torch.no_grad():
        whole = FusedDecoding.of(loaded, 3).step([Feed(0, prompt, 0, [0, 1, 2])])
        decoding = FusedDecoding.of(loaded, 6)
        decoding.step([Feed(1, other[::-1], 0, [5, 1, 4])])
        pages = decoding.layers.storage.pages
        pages[3] = torch.where(pages[5] != 0, torch.nan, 0)  # what another sequence may leave behind
        for start, stop in ((0, 1), (1, 66), (66, 150), (150, 151)):
            feeds = [Feed(1, other[start:stop], start, [0, 1, 2]), Feed(0, prompt[start:stop], start, [5, 3, 4])]
            pieces = decoding.step(feeds[::-1] if start else feeds)
        assert torch.equal(whole[0], pieces[0])


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
}  # fmt: skip
"""Frequencies that transformers chooses by the furthest position of a pass."""


@pytest.mark.parametrize("form", [FusedDecoding, GenericDecoding])
def test_positions_do_not_depend_on_what_is_read_beside_or_before(build, form):
    loaded = build(
        "phi3",
        spread=0.3,
        vocab_size=97,
        hidden_size=32,
        original_max_position_embeddings=24,
        rope_parameters=dict(LONGROPE),
    )
    assert (loaded.longest, loaded.reach) == (24, 24)
    loaded.model.eval()
    words = list(range(60))

    def said(*feeds):
        decoding = form.of(loaded, 4)
        with torch.no_grad():
            return [decoding.step(list(each))[-1] for each in feeds][-1]

    whole = said([Feed(0, words, 0, [0], wanted=True)])
    pieces = said(*([Feed(0, words[start : start + 20], start, [0], wanted=True)] for start in (0, 20, 40)))
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=0)
    short = Feed(1, words[:10], 0, [1], wanted=True)
    alone = said([short])
    beside = said([Feed(0, words, 0, [0], wanted=True), short])
    torch.testing.assert_close(beside, alone, atol=1e-4, rtol=0)
