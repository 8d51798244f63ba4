import pytest
import torch
from transformers import LlamaForSequenceClassification

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.models.attention import plain
from tunesmith.models.forward import needs_autocast, token_logps
from tunesmith.models.heads import (
    attach_head,
    detach_head,
    generic_seen,
    logps_and_values,
    padded_seen,
    restore_head,
    save_head,
    scores,
    token_values,
)  # fmt: skip

VOCABULARY = 97


@pytest.fixture
def headed(build):
    def make(kind="llama", adapter=None, **fields):
        loaded = build(kind, seed=3, vocab_size=VOCABULARY, **fields)
        (adapter or LoRA(rank=4)).attach(loaded, 0)
        torch.nn.init.normal_(attach_head(loaded).weight)
        return loaded

    return make


def alone(loaded, rows):
    """Values where each supervised token is predicted, one sequence after the other through the plain decoder."""
    found = []
    for row in rows:
        for sequence in row.sequences:
            hidden = loaded.model.base_model(
                input_ids=torch.tensor(sequence.tokens[None]).long(), attention_mask=torch.ones(1, len(sequence)), use_cache=False
            )[0][0]  # fmt: skip
            told = hidden @ loaded.model.score.weight[0]
            found.append(told[torch.tensor(sequence.learn).nonzero()[:, 0] - 1])
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_values_are_the_same_by_every_way(headed, random_rows, kind):
    fields = {"gpt2": {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 128}}.get(kind, {})
    loaded, rows = headed(kind, adapter=Full(), **fields), random_rows(3, answers=2)
    batch = Batch.of(rows)
    assert (loaded.decoder() is None) == (kind == "gpt2")
    logp, value = logps_and_values(loaded, batch)
    for logits in (True, False):
        for way in (generic_seen, padded_seen):
            other_logp, other = way(loaded, batch, logits)
            torch.testing.assert_close(other, value, atol=1e-5, rtol=1e-4)
            assert len(other_logp) == logits * batch.supervised
            assert not logits or torch.allclose(other_logp, logp, atol=1e-4)
    torch.testing.assert_close(token_values(loaded, batch), value)
    torch.testing.assert_close(logp, token_logps(loaded, batch))
    loaded.forest = False  # as where an architecture cannot take one
    with plain(loaded.model):
        torch.testing.assert_close(token_values(loaded, batch), value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone(loaded, rows), value, atol=1e-5, rtol=1e-4)


def test_gradients_of_values_are_the_same_by_every_way(headed, random_rows):
    found = []
    for way in (lambda loaded, batch: logps_and_values(loaded, batch)[1], token_values,
                lambda loaded, batch: generic_seen(loaded, batch, True)[1], lambda loaded, batch: padded_seen(loaded, batch, False)[1]):  # fmt: skip
        loaded, batch = headed(), Batch.of(random_rows(2, answers=2))
        way(loaded, batch).square().sum().backward()
        found.append({name: weight.grad for name, weight in trainable(loaded.model).items()})
    assert found[0]["score.weight"].any()
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert (other[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_scores_are_read_at_the_last_token(headed, random_rows):
    """As transformers' model of the same weights reads them, padded on the right."""
    loaded, rows = headed(), random_rows(3, answers=2)
    LoRA(rank=4).merge(loaded)
    found = scores(loaded, Batch.of(rows))
    config = loaded.model.config
    config.num_labels, config.pad_token_id = 1, 0
    theirs = LlamaForSequenceClassification(config).eval()
    state = {name: weight for name, weight in loaded.model.state_dict().items() if not name.startswith("lm_head")}
    theirs.load_state_dict(state)
    theirs.set_attn_implementation("eager")
    tokens = [torch.tensor(one.tokens).long() for row in rows for one in row.sequences]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
    with torch.no_grad():
        expected = theirs(input_ids=padded, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_scores_of_a_sequence_that_another_begins_with(headed, random_rows):
    """Its last token is a node in the middle of the other."""
    loaded, (row,) = headed(), random_rows(1)
    (long,) = row.sequences
    short = type(long)(long.tokens[:-2], long.learn[:-2])
    batch = Batch.of([type(row)("x", (long, short))])
    assert batch.forest.tokens_N.numel() == len(long)
    apart = [scores(loaded, Batch.of([type(row)("x", (one,))])) for one in (long, short)]
    torch.testing.assert_close(scores(loaded, batch), torch.cat(apart), atol=1e-5, rtol=1e-4)


def test_values_stand_behind_a_learnt_prompt(headed, random_rows):
    loaded, batch = headed(adapter=Prompt(tokens=3)), Batch.of(random_rows(2, answers=2))
    value = token_values(loaded, batch)
    for way in (generic_seen, padded_seen):
        torch.testing.assert_close(way(loaded, batch, False)[1], value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        padded_seen(loaded, batch.at_ends(), False)[1], scores(loaded, batch), atol=1e-5, rtol=1e-4
    )


def test_a_head_learns_in_float32_and_changes_nothing_else(build, random_rows):
    loaded, batch = build("llama", seed=3, vocab_size=VOCABULARY, dtype=torch.bfloat16), Batch.of(random_rows(2))
    LoRA(rank=4).attach(loaded, 0)
    before = token_logps(loaded, batch)
    head = attach_head(loaded)
    assert trainable(loaded.model)["score.weight"] is head.weight
    assert head.weight.dtype == torch.float32
    assert not needs_autocast(loaded)
    assert token_values(loaded, batch).dtype == torch.float32
    assert not token_values(loaded, batch).any()
    assert torch.equal(token_logps(loaded, batch), before)
    assert detach_head(loaded) is head
    assert "score.weight" not in trainable(loaded.model)


def test_a_head_is_kept_and_found_again(headed, tmp_path, random_rows):
    loaded, batch = headed(), Batch.of(random_rows(2))
    expected = scores(loaded, batch).detach()
    head = detach_head(loaded)
    save_head(head, tmp_path)
    restore_head(loaded, tmp_path)
    assert torch.equal(scores(loaded, batch), expected)
    assert not loaded.model.score.weight.requires_grad
    with pytest.raises(ModelError, match=r"score\.weight has shape \(1, 16\), expected \(1, 32\)"):
        restore_head(headed(hidden_size=32), tmp_path)
    with pytest.raises(ModelError, match="is no reward model"):
        restore_head(headed(), tmp_path / "elsewhere")
