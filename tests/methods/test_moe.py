"""Upcycling: the mixture begins as the dense model, is one of transformers' own, and learns with transformers' own loss."""

import pytest
import torch
from safetensors import safe_open
from transformers import MixtralForCausalLM

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.moe import MoE
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.sgd import SGD
from tunesmith.models.attention import plain
from tunesmith.models.forward import generic_logps, token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import load
from tunesmith.models.mixture import Balance, grouped_experts
from tunesmith.models.prompt import save_model
from tunesmith.training.loop import train

VOCABULARY = 97


@pytest.fixture
def fresh(build):
    return lambda kind="llama", **fields: build(kind, seed=3, **{"vocab_size": VOCABULARY, **fields})


def spread(loaded, size=0.3):
    """Experts that differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trainable(loaded.model).values():
            weight += size * torch.randn_like(weight)


@pytest.mark.parametrize("kind", ["llama", "mistral", "olmo2", "qwen3"])
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_a_mixture_of_equal_experts_is_the_dense_model(fresh, random_rows, kind, fields):
    batch, loaded = Batch.of(random_rows(4)), fresh(kind, **fields)
    expected = generic_logps(loaded, batch)
    MoE(experts=5, active=3).attach(loaded, 0)
    torch.testing.assert_close(token_logps(loaded, batch), expected, atol=1e-5, rtol=1e-5)
    assert all(".mlp." in name for name in trainable(loaded.model))


def test_each_expert_computes_its_own_tokens_and_no_others(fresh):
    """Against a loop over tokens; an expert that nobody chose has no gradient."""
    loaded = fresh()
    MoE(experts=4).attach(loaded, 0)
    spread(loaded)
    experts = loaded.model.model.layers[0].mlp.experts
    torch.manual_seed(2)
    hidden = torch.randn(7, 16, requires_grad=True)
    chosen = torch.tensor([[0, 3], [3, 1], [0, 1], [1, 0], [3, 0], [1, 3], [0, 3]])
    weight = torch.rand(7, 2, requires_grad=True)
    leaves = (hidden, weight, experts.gate_up_proj, experts.down_proj)

    def slow():
        rows = []
        for token in range(7):
            total = torch.zeros(16)
            for place in range(2):
                number = chosen[token, place]
                gate, up = (experts.gate_up_proj[number] @ hidden[token]).chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                total = total + weight[token, place] * (experts.down_proj[number] @ inner)
            rows.append(total)
        return torch.stack(rows)

    found = []
    for out in (slow(), grouped_experts(experts, hidden, chosen, weight)):
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)
    assert all(not gradient[2].any() for gradient in found[1][3:])


def test_loss_and_gradient_are_transformers_own(fresh, random_rows):
    """With its load-balancing loss, over one sequence."""
    (row,), adapter = random_rows(1), MoE(balance=0.1)
    tokens = row.sequences[0].tokens
    row = Row("one", (Sequence(tokens, (torch.arange(len(tokens)) > 0).numpy()),))
    loaded = fresh()
    adapter.attach(loaded, 0)
    spread(loaded, 0.05)
    twin = MixtralForCausalLM(loaded.model.config)
    twin.load_state_dict(loaded.model.state_dict())
    twin.router_aux_loss_coef = 0.1
    ids = torch.from_numpy(tokens).long()[None]
    with plain(twin):
        expected = twin(input_ids=ids, labels=ids, output_router_logits=True, use_cache=False)
        expected.loss.backward()
    optimizer = SGD(learning_rate=1e-12).build(trainable(loaded.model))
    for loaded.checkpointing in (False, True):
        (step,) = train(loaded, SFT(), [[Batch.of([row])]], optimizer, lambda _: 1.0, seed=0, clip=0)
        assert step.loss == pytest.approx(float(expected.loss.detach()), rel=1e-5)
        assert step.stats["penalty"] == pytest.approx(0.1 * float(expected.aux_loss.detach()), rel=1e-5)
        wanted = dict(twin.named_parameters())
        for name, weight in trainable(loaded.model).items():
            assert (weight.grad - wanted[name].grad).norm() <= 1e-5 * wanted[name].grad.norm(), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_are_those_of_the_pass_and_not_of_its_recomputation(fresh, random_rows, checkpointing):
    loaded = fresh()
    MoE().attach(loaded, 0)
    uneven, loaded.checkpointing = Balance(loaded.model), checkpointing
    loaded.model.train()
    for _ in range(2):
        logp_M = token_logps(loaded, Batch.of(random_rows(3)))
        (uneven() - logp_M.sum()).backward()
        assert len(uneven.scores) == 2


def test_balance_spreads_the_tokens(fresh, random_rows):
    batch, found = Batch.of(random_rows(6)), {}
    for balance in (0.0, 10.0):
        loaded = fresh()
        MoE(balance=10.0).attach(loaded, 0)
        with torch.no_grad():
            for layer in loaded.model.model.layers:
                layer.mlp.gate.weight.mul_(5)
        uneven, loaded.penalty = loaded.penalty, loaded.penalty if balance else None
        optimizer = SGD(learning_rate=0.01).build(trainable(loaded.model))
        list(train(loaded, SFT(), [[batch]] * 20, optimizer, lambda _: 1.0, seed=0, clip=0))
        token_logps(loaded, batch)
        found[balance] = float(uneven().detach()) / 10
    assert 2 <= found[10.0] < found[0.0] - 0.05  # 2 experts a token is what even spreading comes to


def test_what_is_deployed_is_a_mixtral(fresh, random_rows, short_tokenizer, tmp_path):
    """Its folder has the names of Mixtral's own weights, transformers and we open it, and it answers as the trained one."""
    batch, loaded = Batch.of(random_rows(4)), fresh(vocab_size=len(short_tokenizer))
    adapter = MoE(experts=3)
    adapter.attach(loaded, 0)
    spread(loaded, 0.1)
    adapter.merge(loaded)
    save_model(loaded.model, tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "model.layers.1.block_sparse_moe.experts.2.w3.weight" in set(file.keys())
    theirs, ids = MixtralForCausalLM.from_pretrained(tmp_path), torch.arange(3, 27).view(3, 8)
    with torch.no_grad(), plain(loaded.model):
        expected = loaded.model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    opened = load(str(tmp_path), "fp32")
    assert opened.forest
    torch.testing.assert_close(token_logps(opened, batch), token_logps(loaded, batch), atol=1e-5, rtol=1e-5)
    prompts, sampling = [[5, 6, 7], [5, 6, 8, 9]], Sampling(max_tokens=6)
    answers = [[one.tokens for one in generate(each, prompts, sampling)] for each in (loaded, opened)]
    assert answers[0] == answers[1]


def test_models_without_a_mixture_of_their_kind_are_refused(fresh):
    with pytest.raises(ModelError, match=r"no mixture of 'gpt_neox'; it takes llama, mistral, olmo2, qwen3"):
        MoE().attach(fresh("gpt_neox"), 0)
    with pytest.raises(ModelError, match="mixtral cannot hold this llama") as caught:
        MoE().attach(fresh("llama", attention_bias=True), 0)
    assert "\n" not in str(caught.value)


def test_more_experts_cannot_be_active_than_there_are():
    with pytest.raises(ValueError, match="3 experts cannot be chosen from 2"):
        MoE(experts=2, active=3)
