import numpy as np
import pytest
import torch

from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.models.attention import ForestAttend, attending, plain
from tunesmith.models.forward import padded_logps, token_logps

VOCABULARY = 97
WINDOW = {"sliding_window": 6}
ARCHITECTURES = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {},
    "qwen3": {},
    "gemma2": {**WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**WINDOW, "query_pre_attn_scalar": 8},
    "phi3": {},
    "olmo2": {},
    "granite": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 128},
    "starcoder2": {},
    "cohere2": WINDOW,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "minicpm3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "head_dim": 4,
    },
}
RECURRENT = {
    "mamba": {"state_size": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request, build):
    return build(request.param, spread=0.3, vocab_size=VOCABULARY, **ARCHITECTURES[request.param])


def gradients(loaded, logps):
    loaded.model.zero_grad()
    logps.sum().backward()
    return {name: weight.grad.clone() for name, weight in loaded.model.named_parameters() if weight.grad is not None}


def test_a_forest_is_the_padded_batch(loaded, random_rows):
    assert loaded.forest
    batch = Batch.of(random_rows(3, answers=2) + random_rows(2, seed=5))
    assert len(batch.forest.tokens_N) < 0.8 * batch.tokens
    expected = padded_logps(loaded, batch)
    expected_gradient = gradients(loaded, expected)
    found = token_logps(loaded, batch)
    found_gradient = gradients(loaded, found)
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1, float(expected.detach().abs().max())), rtol=0)
    assert found_gradient.keys() == expected_gradient.keys()
    largest = max(float(gradient.norm()) for gradient in expected_gradient.values())
    for name, gradient in expected_gradient.items():
        assert (found_gradient[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * largest, name


def test_the_padded_batch_is_each_sequence_alone(loaded, random_rows):
    batch = Batch.of(random_rows(3))
    with torch.no_grad():
        found = padded_logps(loaded, batch)
        alone = []
        with plain(loaded.model):
            for row in random_rows(3):
                tokens, learn = torch.tensor(row.sequences[0].tokens).long(), row.sequences[0].learn
                logps = loaded.model(input_ids=tokens[None], use_cache=False).logits[0].log_softmax(-1)
                places = torch.tensor(np.flatnonzero(learn))
                alone.append(logps[places - 1, tokens[places]])
    torch.testing.assert_close(found, torch.cat(alone), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_flat_positions_would_be_wrong(build, random_rows, kind):
    """The check above can fail: without depths as positions the result is clearly another."""
    loaded = build(kind, spread=0.3, vocab_size=VOCABULARY, **ARCHITECTURES[kind])
    batch = Batch.of(random_rows(3, answers=2))
    forest = batch.forest
    gaps = {}
    with torch.no_grad(), attending(ForestAttend(forest)):
        expected = padded_logps(loaded, batch)
        for name, position in (("depth", forest.depth_N), ("flat", torch.arange(len(forest.depth_N)))):
            logits = loaded.model(input_ids=forest.tokens_N[None], position_ids=position[None], use_cache=False).logits[
                0
            ]
            found = logits[batch.source_M].log_softmax(-1)[torch.arange(batch.supervised), batch.target_M]
            gaps[name] = float((found - expected).abs().max())
    assert gaps["depth"] < 1e-4
    assert gaps["flat"] > 0.05


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_model_is_padded(build, random_rows, kind):
    loaded = build(kind, vocab_size=VOCABULARY, **RECURRENT[kind])
    assert not loaded.forest
    assert loaded.model.config._attn_implementation != "tunesmith"
    batch = Batch.of(random_rows(2))
    logps = token_logps(loaded, batch)
    assert torch.equal(logps, padded_logps(loaded, batch))
    logps.sum().backward()
    tokens = torch.tensor(random_rows(2)[0].sequences[0].tokens).long()
    with torch.no_grad():
        alone = loaded.model(input_ids=tokens[None], use_cache=False).logits[0].log_softmax(-1)
    learnt = torch.tensor(np.flatnonzero(random_rows(2)[0].sequences[0].learn))
    torch.testing.assert_close(logps[: len(learnt)].detach(), alone[learnt - 1, tokens[learnt]], atol=2e-5, rtol=1e-4)


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {}),
        ("gemma2", {}),
        ("starcoder2", {}),
        ("phimoe", {"num_local_experts": 4}),
        ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 2, **EXPERTS}),
    ],
)
def test_a_window_wider_than_the_self_checks_sequences(build, kind, fields):
    """Of the last two the mask alone knows the window: they are padded."""
    loaded = build(kind, spread=0.3, vocab_size=VOCABULARY, sliding_window=25, **fields)
    assert loaded.forest == (not fields)
    generator = np.random.default_rng(0)
    system = generator.integers(3, VOCABULARY, 30)
    rows = []
    for number in range(2):
        tokens = np.concatenate([system, generator.integers(3, VOCABULARY, 30)])
        rows.append(Row(f"r:{number}", (Sequence(tokens, np.arange(60) >= 30),)))
    with torch.no_grad():
        found, expected = token_logps(loaded, Batch.of(rows)), padded_logps(loaded, Batch.of(rows))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_chunked_attention_is_padded(build, random_rows):
    """Its chunks are in the mask alone, which a forest has none of."""
    loaded = build(
        "llama4_text", vocab_size=VOCABULARY, attention_chunk_size=25, num_local_experts=2, intermediate_size_mlp=32
    )
    assert not loaded.forest


def test_equal_rows_are_computed_once_and_counted_twice(build, random_rows):
    loaded = build("llama", vocab_size=VOCABULARY)
    row = random_rows(1)[0]
    once, twice = Batch.of([row]), Batch.of([row, row])
    assert len(twice.forest.tokens_N) == len(once.forest.tokens_N)
    with torch.no_grad():
        torch.testing.assert_close(token_logps(loaded, twice), token_logps(loaded, once).repeat(2))


def test_a_prefix_of_another_row(build):
    """The shorter row owns no node at all."""
    loaded = build("llama", vocab_size=VOCABULARY, spread=0.3)
    words = np.arange(5, 15)
    batch = Batch.of([Row(f"r:{end}", (Sequence(words[:end], np.arange(end) > 2),)) for end in (10, 6)])
    with torch.no_grad():
        torch.testing.assert_close(token_logps(loaded, batch), padded_logps(loaded, batch), atol=1e-5, rtol=1e-5)


def test_outside_of_a_batch_the_attention_refuses_to_guess(build):
    with pytest.raises(LookupError):
        build("llama", vocab_size=VOCABULARY).model(input_ids=torch.tensor([[5, 6]]))
