"""What every adapter, objective and optimizer keeps, found by its family: a new member needs no new test."""

import numpy as np
import pytest
import torch

from tunesmith.base import ConfigError, ModelError
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.objectives import Objective
from tunesmith.methods.optimizers import Optimizer
from tunesmith.models import attention
from tunesmith.models.forward import padded_logps
from tunesmith.models.heads import attach_head
from tunesmith.models.prompt import load_beside, save_model
from tunesmith.stages.estimate import estimate
from tunesmith.stages.machine import Speed
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train

VOCABULARY = 97
WITHOUT_MATRICES = ("bitfit", "ia3", "memory", "prefix", "prompt")
"""Adapters with nothing in layers that muon is made for."""


def members(family):
    return [
        pytest.param(member, id=f"{family.__name__.lower()}-{member.model_fields['kind'].default}")
        for member in family.members()
    ]


@pytest.fixture
def fresh(build):
    """The same random model each time."""
    return lambda kind="llama", **fields: build(kind, seed=3, vocab_size=VOCABULARY, **fields)


@pytest.fixture
def batch(answered):
    return Batch.of(answered)


def logits(loaded):
    """What the model says of three fixed sequences, by transformers' own attention."""
    tokens = np.arange(3, 27, dtype=np.int32).reshape(3, 8)
    rows = [Row("fixed", (Sequence(one, np.arange(8) > 0),)) for one in tokens]
    with torch.no_grad():
        return padded_logps(loaded, Batch.of(rows))


def disturb(loaded, size=0.05):
    """Move everything that learns, as training would."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in trainable(loaded.model).values():
            parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("member", members(Adapter))
class TestEveryAdapter:
    def test_what_learns_is_float32_and_told_by_the_seed(self, member, fresh):
        found = []
        for seed in (1, 1):
            loaded = fresh(dtype=torch.bfloat16)
            member().attach(loaded, seed)
            weights = trainable(loaded.model)
            assert weights
            assert {weight.dtype for weight in weights.values()} == {torch.float32}
            found.append(weights)
        assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())

    def test_starts_as_the_base_or_says_that_it_does_not(self, member, fresh):
        loaded = fresh()
        before = logits(loaded)
        member().attach(loaded, 1)
        assert torch.allclose(logits(loaded), before, atol=1e-5, rtol=1e-5) == member.neutral

    def test_gradients_reach_what_learns_and_nothing_else(self, member, fresh, batch):
        loaded = fresh()
        member().attach(loaded, 1)
        disturb(loaded)
        learning = trainable(loaded.model)
        frozen = {name: w.clone() for name, w in loaded.model.state_dict().items() if name not in learning}
        loss = Objective.member("sft")()(loaded, batch).total
        assert torch.isfinite(loss)
        loss.backward()
        for name, parameter in loaded.model.named_parameters():
            if name in learning:
                assert parameter.grad is not None, name
                assert parameter.grad.abs().sum() > 0, name
                assert parameter.grad.isfinite().all()
            else:
                assert parameter.grad is None, name
        assert all(torch.equal(loaded.model.state_dict()[name], weight) for name, weight in frozen.items())

    def test_what_was_learnt_is_saved_and_restored(self, member, fresh, tmp_path):
        loaded = fresh()
        base = logits(loaded)
        member().attach(loaded, 1)
        disturb(loaded)
        tuned = logits(loaded)
        assert not torch.allclose(tuned, base, atol=1e-2)
        member().save(loaded, tmp_path / "adapter")
        for again in range(4):  # what is hashed has to be the same bytes each time
            member().save(loaded, tmp_path / f"again-{again}")
            for file in (tmp_path / "adapter").iterdir():
                assert (tmp_path / f"again-{again}" / file.name).read_bytes() == file.read_bytes(), file.name
        again = fresh()
        member().restore(again, tmp_path / "adapter")
        torch.testing.assert_close(logits(again), tuned, atol=1e-6, rtol=1e-6)
        assert not trainable(again.model)

    @pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
    def test_merged_or_beside_the_weights_it_is_kept_in_a_model_folder(self, member, fresh, tmp_path, fields):
        loaded = fresh(**fields)
        member().attach(loaded, 1)
        disturb(loaded)
        tuned = logits(loaded)
        member().merge(loaded)
        save_model(loaded.model, tmp_path)
        torch.testing.assert_close(logits(loaded), tuned, atol=1e-5, rtol=1e-5)
        again = fresh(**fields)
        again.model = type(loaded.model).from_pretrained(tmp_path)
        attention.adopt(again.model)
        load_beside(again.model, tmp_path)
        torch.testing.assert_close(logits(again), tuned, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
    def test_merged_it_is_a_plain_model_of_its_architecture(self, member, fresh, fields):
        loaded = fresh(**fields)
        shapes = {name: weight.shape for name, weight in loaded.model.state_dict().items()}
        member().attach(loaded, 1)
        disturb(loaded)
        member().merge(loaded)
        found = {name: weight.shape for name, weight in loaded.model.state_dict().items()}
        assert (found == shapes) == member.merges

    def test_disabled_it_is_the_base(self, member, fresh):
        loaded = fresh()
        before = logits(loaded)
        member().attach(loaded, 1)
        disturb(loaded)
        tuned = logits(loaded)
        if not member.adds_weights:
            with pytest.raises(NotImplementedError), member().disabled(loaded):
                pass
            return
        with member().disabled(loaded):
            torch.testing.assert_close(logits(loaded), before, atol=1e-6, rtol=1e-6)
        assert torch.equal(logits(loaded), tuned)

    def test_what_was_learnt_on_another_model_is_refused(self, member, fresh, tmp_path):
        loaded = fresh()
        member().attach(loaded, 1)
        member().save(loaded, tmp_path)
        for fields in (
            {"num_hidden_layers": 3},
            {"num_hidden_layers": 1},
            {"hidden_size": 32, "intermediate_size": 48},
        ):
            with pytest.raises(ModelError) as caught:
                member().restore(fresh(**fields), tmp_path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("member", members(Objective))
def test_every_objective_is_a_sum_over_what_it_counts(member, fresh, answered):
    """Micro-batches add up to the batch: losses, counts and gradients. Of those that compare rows, twice the same ones are twice as much."""
    objective, parts = member(), [answered, answered] if member.whole else [answered[:1], answered[1:]]
    rows, parts = [row for part in parts for row in part], [Batch.of(part) for part in parts]
    loaded = fresh()
    if member.head:
        torch.nn.init.normal_(attach_head(loaded).weight)
    whole = objective(loaded, Batch.of(rows))
    whole.total.backward()
    read = {name: p for name, p in loaded.model.named_parameters() if p.grad is not None}
    gradient = {name: p.grad.clone() for name, p in read.items()}
    assert (
        len(read) >= len(list(loaded.model.parameters())) - 1
    )  # one that reads no logits leaves the output head alone
    assert any(each.abs().sum() > 0 for each in gradient.values())
    loaded.model.zero_grad()
    losses = [objective(loaded, part) for part in parts]
    sum(loss.total for loss in losses).backward()
    assert torch.isfinite(whole.total)
    assert sum(objective.count(part) for part in parts) == objective.count(Batch.of(rows)) > 0
    torch.testing.assert_close(sum(loss.total for loss in losses), whole.total, rtol=1e-5, atol=1e-5)
    for name, parameter in read.items():
        assert (parameter.grad - gradient[name]).norm() <= 1e-5 * gradient[name].norm() + 1e-6, name


@pytest.mark.parametrize("member", members(Optimizer))
def test_every_optimizer_moves_what_it_is_given_and_tells_its_memory(member, fresh, batch):
    loaded = fresh()
    loaded.model.requires_grad_(False)
    loaded.model.model.norm.requires_grad_(True)
    loaded.model.model.layers[0].mlp.requires_grad_(True)
    weights = trainable(loaded.model)
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    optimizer = member().build(weights)
    list(train(loaded, Objective.member("sft")(), [[batch]] * 2, optimizer, lambda step: 1.0, seed=0))
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name]) != (name in weights), name
        assert parameter.isfinite().all()
    state = optimizer.state_dict()["state"].values()
    of_weights = [
        one
        for slots in state
        for one in slots.values()
        if one.numel() > 1 and one.dtype in (torch.float32, torch.uint8)
    ]
    kept = sum(value.nbytes for value in of_weights)
    assert kept == member().state_bytes(weights)


def pairs():
    """Combinations in which every two members of two families meet: the optimizer's and the objective's place choose the adapter."""
    adapters, objectives, optimizers = Adapter.members(), Objective.members(), Optimizer.members()
    size = max(len(objectives), len(optimizers), len(adapters))
    return [
        (adapters[(i + j) % size % len(adapters)], objectives[i % len(objectives)], optimizers[j % len(optimizers)])
        for i in range(size)
        for j in range(size)
    ]


def test_every_two_members_meet():
    found = pairs()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        families = (Adapter, Objective, Optimizer)
        wanted = len(families[a].members()) * len(families[b].members())
        assert len({(one[a], one[b]) for one in found}) == wanted


@pytest.mark.parametrize(
    ("adapter", "objective", "optimizer"),
    pairs(),
    ids=lambda member: member.model_fields["kind"].default,
)
def test_combinations_train(adapter, objective, optimizer, fresh, batch):
    loaded = fresh()
    adapter().attach(loaded, 1)
    if objective.head:
        attach_head(loaded)
    learnt = trainable(loaded.model)
    frozen = {name: one for name, one in loaded.model.named_parameters() if name not in learnt}
    before = {name: one.clone() for name, one in loaded.model.named_parameters()}
    if optimizer().kind == "muon" and adapter().kind in WITHOUT_MATRICES:
        with pytest.raises(ConfigError, match="no matrix inside the layers learns"):
            optimizer().over(learnt, frozen)
        return
    moves = optimizer().over(learnt, frozen)
    steps = list(train(loaded, objective(), [[batch]] * 5, moves, lambda step: 1.0, seed=0))
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in steps)
    assert steps[-1].loss < steps[0].loss or not optimizer.gradients
    assert [step.number for step in steps] == list(range(5))
    assert any(not torch.equal(learnt[name], before[name]) for name in learnt)
    moved = [not torch.equal(frozen[name], before[name]) for name in frozen]
    assert any(moved) == (optimizer.moves_frozen and bool(frozen))


@pytest.mark.parametrize("member", members(Adapter))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "olmo2"])
def test_every_adapter_can_be_planned(member, precision, kind, build, random_rows):
    """On fused operations and on transformers' layers, without numbers."""
    config = build(kind, vocab_size=VOCABULARY).model.config
    spec = member(text="some words") if "text" in member.model_fields else member()
    data = Dataset(random_rows(4), 2, 2, 1, 0)
    found = estimate(
        config, spec, Optimizer.member("adamw")(), Objective.member("sft")(), data, precision=precision,
        speed=Speed(1e12, 1e12, 1e10, 1e-6), available=2**40, resident=0,
    )  # fmt: skip
    assert found.learning > 0
    assert found.peak_bytes > found.weights > 0
