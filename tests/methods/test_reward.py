"""Reward models against their formulas, written anew over one padded answer at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tunesmith.base import ConfigError, DataError
from tunesmith.base.spec import validate
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.reward import MARGIN, Reward
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.attention import plain
from tunesmith.models.heads import attach_head, scores
from tunesmith.stages.finetune import Finetune
from tunesmith.training.loop import train


@pytest.fixture
def scorer(build):
    loaded = build("llama", spread=0.2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    attach_head(loaded)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trainable(loaded.model).values():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return loaded


def score(loaded, sequence):
    with plain(loaded.model):
        hidden = loaded.model.base_model(input_ids=torch.tensor(sequence.tokens[None]).long(), use_cache=False)[0]
    return loaded.model.score.weight[0] @ hidden[0, -1]


def written_anew(objective, loaded, rows):
    """The formulas of trl's RewardTrainer: -log sigmoid(chosen - rejected - margin) + c (chosen + rejected)^2, its mean over pairs."""
    costs = []
    for row in rows:
        told = [score(loaded, one) for one in row.sequences]
        if objective.loss == "regression":
            costs.append((told[0] - row.columns["score"]) ** 2)
            continue
        apart = told[0] - told[1] - row.columns.get(MARGIN, 0.0)
        costs.append(torch.log1p(torch.exp(-apart)) + objective.centering * (told[0] + told[1]) ** 2)
    return torch.stack(costs).mean()


@pytest.mark.parametrize(
    ("settings", "answers", "columns"),
    [
        ({}, 2, {}),
        ({"centering": 0.05}, 2, {}),
        ({}, 2, {MARGIN: 0.7}),
        ({"loss": "regression"}, 1, {"score": -1.5}),
    ],
    ids=["plain", "centred", "margin", "regression"],
)
def test_loss_and_gradient_are_those_of_the_formula(scorer, random_rows, settings, answers, columns):
    objective = Reward(**settings)
    rows = [replace(row, columns={name: value * (1 + place) for name, value in columns.items()})
            for place, row in enumerate(random_rows(3, answers=answers))]  # fmt: skip
    objective.check(rows)
    batches = [Batch.of(rows[:1]), Batch.of(rows[1:])]
    found = sum(objective(scorer, batch).total for batch in batches) / sum(map(objective.count, batches))
    found.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(scorer.model).items()}
    scorer.model.zero_grad()
    expected = written_anew(objective, scorer, rows)
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert gradient["score.weight"].any()
    for name, weight in trainable(scorer.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_a_head_that_knows_nothing_finds_pairs_alike(build, random_rows):
    loaded, batch = build("llama", vocab_size=97), Batch.of(random_rows(3, answers=2))
    attach_head(loaded)
    loss = Reward()(loaded, batch)
    assert float(loss.total.detach()) / 3 == pytest.approx(np.log(2))
    assert float(loss.stats["accuracy"]) == float(loss.stats["margin"]) == 0


def test_what_is_told_of_a_step(scorer, random_rows):
    rows = random_rows(4, answers=2)
    stats = Reward()(scorer, Batch.of(rows)).stats
    told = [[float(score(scorer, one).detach()) for one in row.sequences] for row in rows]
    assert float(stats["accuracy"]) == sum(chosen > rejected for chosen, rejected in told)
    assert float(stats["margin"]) == pytest.approx(sum(chosen - rejected for chosen, rejected in told), abs=1e-4)
    assert float(stats["chosen_score"]) == pytest.approx(sum(chosen for chosen, _ in told), abs=1e-4)


def lexical(count, seed, marked=11):
    """Pairs of which the chosen answer holds a certain token."""
    generator, rows = np.random.default_rng(seed), []
    for number in range(count):
        prompt = generator.integers(20, 97, 4)
        answers = [generator.integers(20, 97, generator.integers(3, 7)) for _ in range(2)]
        answers[0][generator.integers(len(answers[0]))] = marked
        sequences = [np.concatenate([prompt, one, [2]]).astype(np.int32) for one in answers]
        rows.append(Row(f"pairs:{number}", tuple(Sequence(one, np.arange(len(one)) >= 4) for one in sequences)))
    return rows


def test_a_tiny_model_learns_what_is_preferred(build):
    loaded = build("llama", seed=2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    attach_head(loaded)
    rows, unseen = lexical(96, 0), lexical(60, 1)
    steps = [[Batch.of(rows[start : start + 16])] for _ in range(8) for start in range(0, 96, 16)]
    moves = AdamW(learning_rate=0.02).build(trainable(loaded.model))
    losses = [step.loss for step in train(loaded, Reward(centering=0.01), steps, moves, lambda step: 1.0, seed=0)]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    with torch.no_grad():
        told = scores(loaded, Batch.of(unseen)).view(-1, 2)
    assert float((told[:, 0] > told[:, 1]).float().mean()) > 0.85
    assert abs(float(told.sum(1).mean())) < 1.5


def test_marks_are_learnt(build):
    loaded = build("llama", seed=2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    attach_head(loaded)
    rows = [Row(row.origin, (one,), {"score": 2.0 * (place == 0)}) for row in lexical(48, 0) for place, one in enumerate(row.sequences)]  # fmt: skip
    steps = [[Batch.of(rows[start : start + 16])] for _ in range(8) for start in range(0, 96, 16)]
    moves = AdamW(learning_rate=0.02).build(trainable(loaded.model))
    losses = [step.loss for step in train(loaded, Reward(loss="regression"), steps, moves, lambda step: 1.0, seed=0)]
    assert np.mean(losses[-6:]) < 0.5 < 0.9 < np.mean(losses[:6])  # a constant would have 1


@pytest.mark.parametrize(
    ("settings", "answers", "columns", "message"),
    [
        ({}, 1, {}, r"random:1: 1 answers, objective reward with loss preference learns from 2.*loss=regression"),
        ({"loss": "regression"}, 2, {}, r"2 answers, objective reward with loss regression learns from 1"),
        ({"loss": "regression", "target": "stars"}, 1, {"score": 1.0}, r"prepare\.columns=\[stars\]"),
    ],
)
def test_rows_of_another_shape_are_refused(random_rows, settings, answers, columns, message):
    with pytest.raises(DataError, match=message):
        Reward(**settings).check(random_rows(1, answers=answers, **columns))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="centering is for preferences"):
        Reward(loss="regression", centering=0.1)
    with pytest.raises(ConfigError, match=r"leaves a model that scores answers and writes none.*take auto or loss"):
        validate(Finetune, {"objective": {"kind": "reward"}, "validation": {"metric": {"kind": "exact"}}}, "r.yaml")
