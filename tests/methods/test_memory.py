"""A memory of many small experts: few wake for a token, the same ones everywhere, and facts are learnt without touching other text."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tunesmith.base import ModelError
from tunesmith.base.spec import validate
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.adapters.memory import Memory
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.attention import plain
from tunesmith.models.forward import generic_logps, padded_logps, token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.memory import MemoryLinear, memories
from tunesmith.models.prompt import load_beside, save_model
from tunesmith.stages.prune import Prune
from tunesmith.stages.recipe import Recipe
from tunesmith.training.loop import train

VOCABULARY = 97


@pytest.fixture
def fresh(build):
    return lambda **fields: build("llama", seed=3, **{"vocab_size": VOCABULARY, **fields})


def facts(count, seed=0):
    """Rows: what is asked begins alike, a name of three random tokens, and a code of four, which nothing could tell."""
    drawn = np.random.default_rng(seed)
    made = []
    for number in range(count):
        tokens = np.concatenate([[5, 6, 7], drawn.integers(10, VOCABULARY, 7)]).astype(np.int32)
        made.append(Row(f"fact:{number}", (Sequence(tokens, np.arange(10) >= 6),)))
    return made


def filled(base, experts=6, rank=2, active=2):
    """A memory in which everything is something."""
    torch.manual_seed(0)
    layer = MemoryLinear(base, experts, rank, 0.5, active)
    with torch.no_grad():
        for tensor in (layer.memory_A, layer.memory_B):
            tensor.normal_()
        layer.key.copy_(torch.nn.functional.normalize(torch.randn_like(layer.key), dim=1))
        layer.mean.normal_()
        layer.deviation.uniform_(0.5, 2)
        layer.floor.fill_(0.2)
    return layer


def test_a_token_is_computed_by_its_nearest_experts_alone():
    """Value and gradient against a loop over tokens; experts that nobody wakes have a gradient of exactly zero."""
    layer = filled(torch.nn.Linear(8, 5))
    x = torch.randn(3, 8, requires_grad=True)
    woken, rows = set(), []
    for token in x:
        query = (token.detach() - layer.mean) / layer.deviation
        likeness = layer.key @ (query / query.norm())
        mine = [n for n in likeness.argsort(descending=True)[:2].tolist() if likeness[n] >= 0.2]
        woken |= set(mine)
        added = sum((layer.memory_B[n].t() @ (layer.memory_A[n] @ token) for n in mine), torch.zeros(5))
        rows.append(layer.base(token) + 0.5 * added)
    assert 0 < len(woken) < 6
    found, leaves = [], (x, layer.memory_A, layer.memory_B)
    for out in (torch.stack(rows), layer(x)):
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for gradient in found[1][2:]:
        assert {n for n in range(6) if gradient[n].any()} == woken


class TestKeys:
    def test_as_many_experts_as_inputs_have_one_each_and_nothing_else_wakes_them(self):
        layer, inputs = filled(torch.nn.Linear(8, 5)), torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
        layer.settle(inputs, 0.1, 0)
        awake = layer.awake(inputs)
        assert awake.sum(1).tolist() == [1] * 4
        assert awake.any(0).sum() == 4
        others = torch.randn(500, 8, generator=torch.Generator().manual_seed(2))
        assert layer.awake(others).any(1).float().mean() < 0.1

    def test_those_that_sleep_for_ever_take_no_place_among_the_nearest(self):
        """Four of six own an input: with a reach of 2 the nearest two of these wake always."""
        layer, inputs = filled(torch.nn.Linear(8, 5)), torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
        layer.settle(inputs, 2.0, 0)
        others = torch.randn(500, 8, generator=torch.Generator().manual_seed(2))
        owning = layer.floor < 2
        assert owning.sum() == 4
        awake, likeness = layer.awake(others), layer._direction(others) @ layer.key[owning].t()
        assert (awake.sum(1) == 2).all()
        assert not awake[:, ~owning].any()
        expected = torch.zeros_like(likeness, dtype=torch.bool).scatter(1, likeness.topk(2, 1).indices, True)
        assert torch.equal(awake[:, owning], expected)

    def test_fewer_are_shared_by_inputs_that_are_alike(self):
        centres = torch.nn.functional.normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(1)), dim=1)
        noise = torch.randn(6, 20, 32, generator=torch.Generator().manual_seed(2))
        inputs = (centres[:, None] + 0.02 * noise).flatten(0, 1)
        layer = filled(torch.nn.Linear(32, 5), experts=12, active=1)
        layer.settle(inputs, 0.0, 0)
        owner = (layer._direction(inputs) @ layer.key.t()).argmax(1).view(6, 20)
        assert layer.awake(inputs).sum(1).tolist() == [1] * 120
        for one in range(6):
            for other in range(one):
                assert not set(owner[one].tolist()) & set(owner[other].tolist())


def woken(loaded, run):
    """The experts of each token that passes while something runs."""
    (memory,) = memories(loaded.model).values()
    found = []
    handle = memory.register_forward_pre_hook(lambda layer, given: found.append(layer.awake(given[0])))
    try:
        run()
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("queries", [1, 64])
@pytest.mark.parametrize("prompt", [0, 3])
@pytest.mark.parametrize("forest", [True, False], ids=["forest", "padded"])
def test_keys_are_chosen_by_inputs_where_answers_are_told(fresh, random_rows, monkeypatch, forest, prompt, queries):
    """Of rows of two answers of unequal lengths, against one sequence at a time; of many tokens evenly some, and without any logits."""
    monkeypatch.setattr("tunesmith.methods.adapters.memory.QUERIES", queries)
    monkeypatch.setattr("tunesmith.methods.adapters.memory.ROWS", 2)
    loaded, rows, adapter = fresh(), random_rows(5, answers=2), Memory(experts=8)
    if prompt:
        Prompt(tokens=prompt).attach(loaded, 0)
    loaded.forest = forest
    if not forest:
        loaded.model.set_attn_implementation("eager")
    adapter.attach(loaded, 0)
    (memory,) = memories(loaded.model).values()
    expected, seen, settled = [], [], []
    handle = memory.register_forward_pre_hook(lambda layer, given: seen.append(given[0][0]))
    with plain(loaded.model) if forest else nullcontext():
        for sequence in (each for row in rows for each in row.sequences):
            tokens = torch.tensor([*loaded.prefix, *sequence.tokens.tolist()])
            loaded.model(tokens[None])
            expected.append(seen.pop()[torch.from_numpy(sequence.learn).nonzero()[:, 0] + prompt - 1])
    handle.remove()
    monkeypatch.setattr(memory, "settle", lambda input_MI, reach, seed: settled.append(input_MI))
    loaded.model.lm_head.register_forward_hook(lambda *_: pytest.fail("logits were computed"))
    adapter.begin(loaded, rows, 0)
    every_MI, (found_MI,) = torch.cat(expected), settled
    apart_MM = torch.cdist(found_MI.double(), every_MI.double())
    assert apart_MM.min(1).values.max() < 1e-3
    if queries == 64:
        assert apart_MM.min(0).values.max() < 1e-3
    else:
        assert len(every_MI) > 8 >= len(found_MI) >= 4


def test_the_same_experts_wake_in_training_evaluation_and_serving_and_before_and_after(fresh):
    loaded, rows = fresh(hidden_size=64, num_hidden_layers=3), facts(4)
    Memory(experts=32).attach(loaded, 0)
    Memory(experts=32).begin(loaded, rows, 0)
    batch = Batch.of(rows)
    assert batch.forest.tokens_N.numel() < 4 * 10  # what they begin with stands once
    (forest,) = woken(loaded, lambda: generic_logps(loaded, batch))
    steps = train(
        loaded, SFT(), [[batch]] * 30, AdamW(learning_rate=0.05).build(trainable(loaded.model)), lambda _: 1.0, seed=0
    )
    assert list(steps)[-1].loss < 1
    (after,) = woken(loaded, lambda: generic_logps(loaded, batch))
    assert torch.equal(forest, after)
    (padded,) = woken(loaded, lambda: padded_logps(loaded, batch))
    for number, row in enumerate(rows):
        mine = forest[0, batch.forest.nodes(number)]
        assert mine.sum() >= 4
        assert torch.equal(mine, padded[number])
        prompt = row.sequences[0].tokens[:6].tolist()
        answer = []
        decoded = woken(
            loaded, lambda p=prompt, a=answer: a.extend(generate(loaded, [p], Sampling(max_tokens=4))[0].tokens)
        )
        common = len(prompt) + len(answer) - 1 if answer == row.sequences[0].tokens[6:].tolist() else len(prompt)
        assert torch.equal(torch.cat(decoded, 1)[0, :common], mine[:common])


def test_facts_that_nobody_could_know_are_recalled_exactly_and_other_text_stays_as_likely(fresh):
    """Sixteen random codes of random names, driven below 0.05 nats a token; text of other random tokens keeps its perplexity."""
    loaded, rows, others = (
        fresh(hidden_size=64, intermediate_size=64, num_hidden_layers=3),
        facts(16),
        facts(30, seed=9),
    )
    others = [Row(one.origin, (Sequence(one.sequences[0].tokens[::-1].copy(), np.arange(10) > 0),)) for one in others]
    other = Batch.of(others)
    adapter, objective = Memory(experts=96), SFT(enough=0.05)
    with torch.no_grad():
        before = token_logps(loaded, other)
    adapter.attach(loaded, 0)
    adapter.begin(loaded, rows, 0)
    optimizer = AdamW(learning_rate=0.03).build(trainable(loaded.model))
    losses = []
    for step in train(loaded, objective, [[Batch.of(rows)]] * 200, optimizer, lambda _: 1.0, seed=0):
        losses.append(step.loss)
        if step.loss == 0:
            break
    assert losses[-1] == 0 < losses[0]
    loaded.model.eval()
    prompts = [row.sequences[0].tokens[:6].tolist() for row in rows]
    answers = [one.tokens for one in generate(loaded, prompts, Sampling(max_tokens=4))]
    assert answers == [row.sequences[0].tokens[6:].tolist() for row in rows]
    with torch.no_grad():
        after = token_logps(loaded, other)
    assert float((before.mean() - after.mean()).abs()) < 0.01
    (asked,) = woken(loaded, lambda: generic_logps(loaded, Batch.of(rows)))
    (memory,) = memories(loaded.model).values()
    learnt = set(memory.memory_B.detach().flatten(1).any(1).nonzero().flatten().tolist())
    assert learnt <= set(asked.flatten(0, -2).any(0).nonzero().flatten().tolist())
    assert 0 < len(learnt) <= 16 * 4 < 96


class TestEnough:
    def test_only_what_rows_lose_above_it_is_minimised(self, fresh, random_rows):
        loaded, rows = fresh(), random_rows(5)
        batch = Batch.of(rows)
        alone = [SFT()(loaded, Batch.of([row])).total for row in rows]
        means = [float(total.detach()) / row.sequences[0].learn.sum() for total, row in zip(alone, rows, strict=True)]
        enough = float(np.median(means))
        above = [mean > enough for mean in means]
        assert 0 < sum(above) < 5
        kept = [
            total - enough * int(row.sequences[0].learn.sum())
            for total, row, more in zip(alone, rows, above, strict=True)
            if more
        ]
        loss = SFT(enough=enough)(loaded, batch).total
        torch.testing.assert_close(loss, sum(kept), atol=1e-4, rtol=1e-5)
        weights = list(trainable(loaded.model).values())
        for ours, expected in zip(*(torch.autograd.grad(one, weights) for one in (loss, sum(kept))), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)

    def test_rows_that_are_known_have_no_gradient(self, fresh, random_rows):
        loaded = fresh()
        loss = SFT(enough=50.0)(loaded, Batch.of(random_rows(3))).total
        loss.backward()
        assert float(loss.detach()) == 0
        assert not any(weight.grad.any() for weight in trainable(loaded.model).values())


class TestRefusals:
    def test_layers_and_targets_that_are_not_there(self, fresh):
        with pytest.raises(ModelError, match=r"adapter\.layer: this model has 2 layers, counted from 0, not 2"):
            Memory(layer=2).attach(fresh(), 0)
        with pytest.raises(ModelError, match=r"adapter\.target: layer 1 has not one .* 'fc' but mlp\.down_proj, .*"):
            Memory(target="fc").attach(fresh(), 0)
        with pytest.raises(ValueError, match="3 experts cannot be woken of 2"):
            Memory(experts=2, active=3)

    @pytest.mark.parametrize(
        "kind", ["full", "half", "layers", "bitfit", "moe", "lora", "dora", "ia3", "memory", "prompt", "prefix"]
    )
    def test_a_base_that_has_a_memory_already(self, fresh, tmp_path, kind):
        """Through a folder, as a deployed model comes; its weights stay as they were."""
        loaded = fresh()
        Memory(experts=4).attach(loaded, 0)
        save_model(loaded.model, tmp_path)
        loaded = fresh()
        load_beside(loaded.model, tmp_path)
        layers = [type(one) for one in loaded.model.modules()]
        with pytest.raises(ModelError, match=r"llama has a memory that learnt, .*; tune its base instead"):
            Adapter.member(kind)().attach(loaded, 0)
        assert [type(one) for one in loaded.model.modules()] == layers
        with pytest.raises(ModelError, match=r"prune: .* has a memory that learnt, .*; prune its base instead"):
            Prune.model_validate({"method": {"kind": "layers", "count": 1}}).check(tmp_path)

    def test_a_base_that_moves(self):
        tree = {
            "prepare": {"source": "rows.jsonl"},
            "initialise": {"adapter": {"kind": "memory"}},
            "finetune": {"optimizer": {"kind": "hybrid"}},
        }
        with pytest.raises(ValueError, match="cannot move what the adapter memory leaves frozen"):
            validate(Recipe, tree, "r.yaml")
